"""Diagnosis of a run: the guard's rules read its log again, and its transcripts are measured."""

from heliostat.report.diagnosis.explain import Diagnosis, diagnose, diagnose_run
from heliostat.report.diagnosis.replay import replay

__all__ = ["Diagnosis", "diagnose", "diagnose_run", "replay"]
