"""What an experiment returns and writes: a tidy table, claims with intervals and tests, a figure, a page of text."""

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, cast

import pandas as pd
import pyarrow as pa

from psi_fast import store
from psi_fast.environment import device_info, versions
from psi_fast.errors import ConfigError, StoreError
from psi_fast.experiments.statistics import Claim
from psi_fast.experiments.study import Study
from psi_fast.figures.style import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, CSV, CLAIMS, SUMMARY, MANIFEST = "table.parquet", "table.csv", "claims.csv", "summary.md", "manifest.json"
READING = (
    "A row of the table is a number with its 95 % interval and, where a question can be asked of it, a p, which is not corrected "
    "for how many rows there are; *paper* is what arXiv 2508.16950 has; *units* is how many channels, or what else there is one "
    "of, it comes from; *how* is how interval and p were made. S_z, Q_z and D_z are the components' z against their nulls; "
    "S_hat, Q_hat and D_hat (S^, Q^, D^) the calibrated components, from 0 to 1, whose product is PSI; q is a channel's p "
    "corrected over its layer after Benjamini and Hochberg. AUROC is the share of pairs that are ranked rightly, .5 by chance. "
    "Random-patch channels of a run draw from one pool of 1000 patches, so they share images, and intervals of random patches "
    "are rather too narrow: over eight seeds their mean PSI varied 1.4 times as much as that of 100 independent channels would."
)
"""What every page says of its table."""
Options = ParamSpec("Options")
Draw = Callable[[pd.DataFrame, Sequence[Claim]], "Figure"]


@dataclass(frozen=True)
class Finding:
    """What an experiment itself comes to.

    table : tidy, a row an observation
    claims : the numbers it was made for
    text : paragraphs of Markdown that say what was asked and what came out
    """

    table: pd.DataFrame
    claims: Sequence[Claim]
    text: str


@dataclass(frozen=True)
class Outcome(Finding):
    """A Finding with its name, figure and manifest; `folder` holds them as files.

    figure : drawn from table and claims alone
    """

    name: str = ""
    folder: Path = Path()
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])
    draw: Draw | None = None

    @property
    def figure(self) -> "Figure":
        """The figure, drawn anew."""
        assert self.draw is not None, "an outcome has a way to be drawn"
        return self.draw(self.table, self.claims)

    def __repr__(self) -> str:
        return f"Outcome({self.name}, {len(self.table)} rows, {len(self.claims)} claims, in {self.folder})"

    @property
    def summary(self) -> str:
        """The page of Markdown: text, claims as a table, settings."""
        about = self.manifest
        lines = [
            f"# {self.name}",
            "",
            self.text.strip(),
            "",
            "![figure](figure.svg)",
            "",
            *claim_lines(self.claims),
            "",
            READING,
            "",
        ]
        lines += [f"{about['network']}, {', '.join(about['layers'])}; {about['images']} images of {about['source']};"]
        lines += [f"{about['encoder']}; options {json.dumps(about['options'], sort_keys=True)};"]
        settings = ", ".join(f"{name} {value}" for name, value in about["config"].items())
        lines += [f"settings: {settings}.", "", _made(about), *(f"\nNote: {said}" for said in about["warnings"])]
        return "\n".join(lines).strip() + "\n"


def experiment(
    draw: Draw,
) -> Callable[[Callable[Concatenate[Study, Options], Finding]], Callable[Concatenate[Study, Options], Outcome]]:
    """Make a function of a study into an experiment: its finding is drawn by `draw` and kept in the study's folder.

    One that is there, of the same subject, options and code, is read instead of computed again.
    """

    def decorate(
        find: Callable[Concatenate[Study, Options], Finding],
    ) -> Callable[Concatenate[Study, Options], Outcome]:
        name = find.__name__.replace("_", "-")

        @functools.wraps(find)
        def conduct(study: Study, *args: Options.args, **options: Options.kwargs) -> Outcome:
            if args:
                raise ConfigError(f"options of {name} are named, got {args[0]!r} without a name")
            given = (find.__kwdefaults__ or {}) | options
            folder = study.folder / store.EXPERIMENTS / name
            about = study.about | {
                "experiment": name,
                "options": _plain(given),
                "identity": store.fingerprint(
                    [study.about["identity"], name, _plain(given), store.code_fingerprint(True)]
                ),
            }
            if (found := _read(folder, about["identity"], draw)) is not None:
                study.bars.say(store.reused(folder, found.manifest))
                return found
            before = dict(study.bars.seconds)
            with study.bars.stage(name):
                finding = find(study, *args, **options)
            seconds = {k: round(v - before.get(k, 0), 3) for k, v in study.bars.seconds.items() if v > before.get(k, 0)}
            manifest = about | {
                "made": store.now(),
                "claims": len(finding.claims),
                "images": len(study.subject.images),
                "device": device_info(study.subject.device),
                "versions": versions(),
                "seconds": seconds,
                "warnings": list(
                    dict.fromkeys([*study.subject.network.warnings, *study.subject.encoder.warnings, *study.said])
                ),
            }
            return _written(Outcome(finding.table, finding.claims, finding.text, name, folder, manifest, draw))

        return conduct

    return decorate


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """The claims as lines of a Markdown table."""
    lines = ["| what | value | 95 % interval | p | paper | units | how |", "|---|---|---|---|---|---|---|"]
    for one in claims:
        cells = [cell.replace("|", "\\|") for cell in (*claim_cells(one), str(one.count or ""), one.how)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def claim_cells(claim: Claim) -> tuple[str, str, str, str, str]:
    """Name, value, interval, p and the paper's value as a reader sees them; empty where there is none."""
    interval = "" if math.isnan(claim.low) else f"{_number(claim.low)} to {_number(claim.high)}"
    p = "" if math.isnan(claim.p) else "< 1e-300" if claim.p < 1e-300 else f"{claim.p:.2g}"
    return claim.name, _number(claim.value), interval, p, claim.paper


def claim_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """A row a claim."""
    return pd.DataFrame([asdict(one) for one in claims], columns=[own.name for own in fields(Claim)])


def _written(outcome: Outcome) -> Outcome:
    """The outcome, now in its folder; the manifest comes last."""
    folder = outcome.folder
    with store.reserved(folder):
        try:
            (folder / MANIFEST).unlink(missing_ok=True)  # of another run of the experiment, which this one replaces
            store.write_whole(folder / TABLE, lambda path: outcome.table.to_parquet(path, index=False))
            store.write_whole(folder / CSV, lambda path: outcome.table.to_csv(path, index=False))
            store.write_whole(folder / CLAIMS, lambda path: claim_table(outcome.claims).to_csv(path, index=False))
            for kind in ("svg", "png"):
                held = rendered(outcome.figure, kind)
                store.write_whole(folder / f"figure.{kind}", lambda path, held=held: path.write_bytes(held))
            store.write_whole(folder / SUMMARY, lambda path: path.write_text(outcome.summary, encoding="utf-8"))
            text = json.dumps(outcome.manifest | {"text": outcome.text}, indent=2, ensure_ascii=False) + "\n"
            store.write_whole(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}") from error
    return outcome


def read_outcome(folder: Path, draw: Draw | None = None) -> Outcome:
    """The finished experiment in `folder`; it can be drawn anew by `draw` alone.

    Raises
    ------
    StoreError
        There is none, or a file of it cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rows = pd.read_csv(
            folder / CLAIMS, keep_default_na=False, na_values={c: [""] for c in ("value", "low", "high", "p")}
        )
        claims = [Claim(**{str(key): value for key, value in row.items()}) for row in rows.to_dict("records")]
        if len(claims) != manifest["claims"]:
            raise ValueError(f"{CLAIMS} has {len(claims)} of {manifest['claims']} claims")
        name, text = manifest["experiment"], manifest.pop("text")
        return Outcome(pd.read_parquet(folder / TABLE), claims, text, name, folder, manifest, draw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise StoreError(f"cannot read the experiment in {folder}: {error}; remove it and run it again") from error


def _read(folder: Path, identity: str, draw: Draw) -> Outcome | None:
    """The outcome in `folder`; None where there is none, or another."""
    try:
        found = read_outcome(folder, draw)
    except StoreError:
        return None
    return found if found.manifest.get("identity") == identity else None


def _made(about: dict[str, Any]) -> str:
    """When, how fast and on what."""
    machine, stages = about["device"], dict(about["seconds"])
    whole = stages.pop(about["experiment"])
    longest = ", ".join(f"{stage} {took:.0f} s" for stage, took in stages.items() if took >= 1)
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    held = ", ".join(f"{name} {about['versions'][name]}" for name in ("psi-fast", "python", "torch", "numba"))
    return (
        f"Made {about['made']} in {whole:.0f} s{f' ({longest})' * bool(longest)}, not counting what the run folder held already; "
        f"{machine['name']}{threads}; {held}."
    )


def _plain(value: Any) -> Any:
    """Options as JSON takes them."""
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in cast(dict[str, Any], value).items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(own) for own in cast(Sequence[Any], value)]
    return os.fspath(cast(os.PathLike[str], value)) if isinstance(value, os.PathLike) else value


def _number(value: float) -> str:
    """Three digits that say something; nan as a dash."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 0.1 or abs(value) >= 1000 else f"{value:.3f}"
