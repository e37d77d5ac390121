"""The same channels under other settings, encoders and concepts; what a change leaves alone is not computed again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from psi_fast.calibration import calibrate, combine
from psi_fast.components import measure
from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder, load_encoder
from psi_fast.encoders.text_head import FAMILY, load_text_head
from psi_fast.errors import InputError
from psi_fast.evaluation import Evaluation, centred_bank
from psi_fast.experiments.study import Study
from psi_fast.nulls import concept_pool, text_moments
from psi_fast.results import Bank, Clusters, PatchEmbeddings
from psi_fast.text_banks import concept_bank, head_bank


@dataclass(frozen=True)
class Setting:
    """Channels scored under one value of a knob.

    knob, value : names
    scores : a row a channel: channel, psi, log_psi
    base : the value that the knob's others are compared with
    control : where no agreement is expected, such as random weights
    """

    knob: str
    value: str
    scores: pd.DataFrame
    base: bool = False
    control: bool = False


def changed(
    study: Study, layer: str, channels: np.ndarray, knob: str, values: dict[str, dict[str, Any]], base: str
) -> Iterator[Setting]:
    """The channels under changes of the study's settings, by the value's name."""
    for value, changes in values.items():
        found = study.evaluation(layer, study.with_changes(**changes), channels=channels)
        yield Setting(knob, value, scores_of(found), value == base)


def encoded(study: Study, layer: str, channels: np.ndarray, knob: str, specs: tuple[str, ...]) -> Iterator[Setting]:
    """The channels in the study's encoder, and in those that `specs` name; one with random weights is a control."""
    yield Setting(knob, study.subject.encoder.name, scores_of(study.evaluation(layer, channels=channels)), True)
    for spec in specs:
        encoder = load_encoder(spec, study.trust_checkpoint).to(study.subject.device)
        if encoder.name == study.subject.encoder.name:
            continue
        found = study.evaluation(layer, None, encoder, own_concepts(study, encoder), channels)
        random = any(said.startswith("random weights") for said in encoder.warnings)
        study.said += [said for said in encoder.warnings if said not in study.said]
        yield Setting(knob, encoder.name, scores_of(found), control=random)


def own_concepts(study: Study, encoder: Encoder) -> Bank:
    """The study's vocabulary, or else the encoder's own, as `encoder` embeds it."""
    subject = study.subject
    with study.bars.stage("concepts"):
        names, rows, said = concept_bank(encoder, subject.words, study.mark(encoder), subject.device, study.bars)
    study.said += said
    return Bank(tuple(names), normalize(rows.float().cpu(), dim=1))


def with_head(study: Study, spec: str) -> tuple[str, Bank]:
    """The head's name, and the study's concepts with its rows for distances among them.

    `spec` names a text head, or an encoder whose own text stands in for one.

    Raises
    ------
    InputError
        The encoder has other concepts.
    """
    bank, device = study.text, study.subject.device
    if spec.partition(":")[0] == FAMILY:
        head = load_text_head(spec).to(device)
        with study.bars.stage("concepts"):
            rows, said = head_bank(head, bank.names, head.fingerprint(), device, study.bars)
        study.said += said
        return head.name, replace(bank, head=normalize(rows.float().cpu(), dim=1))
    encoder = load_encoder(spec, study.trust_checkpoint).to(device)
    other = own_concepts(study, encoder)
    if other.names != bank.names:
        raise InputError(
            f"{encoder.name} cannot stand in as a text head: its {len(other.names)} concepts are not the {len(bank.names)} of "
            "the study; name an encoder with the same ones, or a text head"
        )
    return encoder.name, replace(bank, head=other.embeddings)


def worded(study: Study, found: Evaluation, bank: Bank, config: PSIConfig) -> pd.DataFrame:
    """Scores of the evaluated channels with `bank` as the concepts: D and its null are new, S and Q as they were.

    They are those of `Study.evaluation` with this `text` and `config`, whose distinctness and text null may differ from the
    evaluation's; the draws of S, which take most of its time, are spared.
    """
    device = study.subject.device
    ids = torch.from_numpy(found.table["channel"].to_numpy().copy())
    clusters = Clusters(*(part.to(device) for part in vars(found.clusters).values()))
    bank = (centred_bank(bank) if config.center else bank).to(device)
    channels = PatchEmbeddings(bank.embeddings[:0], torch.empty(len(ids), 0, dtype=torch.int64), ids).to(device)
    parts = measure(channels, clusters, None, bank, config)
    distinct, pool = parts.present()["D"], concept_pool(parts.concepts, config)
    null = text_moments(channels.channel, clusters.k, clusters.prototypes, distinct, bank, pool, config)
    own = calibrate(*(x.cpu().numpy() for x in (distinct, null.mean, null.sd, null.p)))
    table = found.table
    kept = [
        calibrate(*(table[name + suffix].to_numpy() for suffix in ("", "_null_mean", "_null_sd", "_p")))
        for name in "SQ"
        if name in found.draws
    ]
    log_psi, _ = combine([*kept, own])
    return pd.DataFrame({"channel": ids.numpy(), "psi": np.exp(log_psi), "log_psi": log_psi})


def scores_of(found: Evaluation) -> pd.DataFrame:
    """Channel, psi and log_psi of an evaluation's channels."""
    return found.table[["channel", "psi", "log_psi"]].reset_index(drop=True)
