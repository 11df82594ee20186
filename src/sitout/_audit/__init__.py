"""The audit: rules that find dropout mistakes."""

from ._audit import audit
from ._finding import Audit, Finding, Severity
from ._scan import scan
from ._training import audit_training

__all__ = ["Audit", "Finding", "Severity", "audit", "audit_training", "scan"]
