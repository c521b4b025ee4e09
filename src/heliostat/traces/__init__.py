"""Traces: completions worth keeping, stored once by many writers, exchanged as Parquet, and cut into prefixes."""

from heliostat.traces.bank import Appended, Attempts, Bank
from heliostat.traces.checking import check_bank, whole_traces
from heliostat.traces.database import BankError
from heliostat.traces.files import read_rows
from heliostat.traces.fingerprint import policy_fingerprint, tokenizer_fingerprint
from heliostat.traces.importing import ImportReport, Problems, import_rows, reverify
from heliostat.traces.parquet import export_bank
from heliostat.traces.record import Trace, TraceSource
from heliostat.traces.row_issues import RowIssues
from heliostat.traces.summary import BankSummary, summarise

__all__ = [
    "Appended",
    "Attempts",
    "Bank",
    "BankError",
    "BankSummary",
    "ImportReport",
    "Problems",
    "RowIssues",
    "Trace",
    "TraceSource",
    "check_bank",
    "export_bank",
    "import_rows",
    "policy_fingerprint",
    "read_rows",
    "reverify",
    "summarise",
    "tokenizer_fingerprint",
    "whole_traces",
]
