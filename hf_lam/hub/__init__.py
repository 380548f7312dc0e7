"""Models on the Hub: pushed in one commit, with a card, and checked before their code is trusted."""

from .pushing import PushReport, push
from .remote import PushError
from .verification import Finding, Verification, verify

__all__ = ["Finding", "PushError", "PushReport", "Verification", "push", "verify"]
