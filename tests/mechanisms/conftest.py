from __future__ import annotations

from helpers.few_scores import attention_of_long_inputs as attention_of_long_inputs
from helpers.few_scores import few_scores as few_scores
