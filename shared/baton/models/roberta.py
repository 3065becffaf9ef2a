"""RoBERTa and XLM-RoBERTa: BERT with positions that begin behind the padding's, and a head of its own; BGE-M3 is of its kind."""

from __future__ import annotations

from baton.models.bert import Bert, BertOwn, read_bert
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    padding = fields.integer("pad_token_id", default=1, minimum=0)
    return read_bert(fields, BertOwn(fields.integer("type_vocab_size", default=2), padding + 1, "classifier"))


_KINDS = ("Model", "ForSequenceClassification", "ForMaskedLM")
FAMILY = Family("roberta", tuple(f"Roberta{kind}" for kind in _KINDS), read, Bert)
XLM_FAMILY = Family("xlm-roberta", tuple(f"XLMRoberta{kind}" for kind in _KINDS), read, Bert)
