"""Figures in one style: those of experiments, and for papers those of a finished run."""
