"""Fine-tune a BERT on sentences or pairs of sentences, with or without attention mechanisms.

    python examples/run_text_classification.py --model_name_or_path BERT --data_dir DATA/sst2 \\
        --mechanism lam --mechanism_learning_rate 3e-3 --do_train --do_eval --output_dir out
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Value
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hf_lam.modeling.host_attention_hf_lam import find_encoder
from hf_lam.modeling.hosts_hf_lam import max_length_of
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of
from hf_lam.training.arguments import DataArguments, ModelArguments
from hf_lam.training.columns import columns_of, name_of_sample, stored_columns
from hf_lam.training.data import check_texts, limited
from hf_lam.training.finetuning import before_training, make_trainer, open_task, run
from hf_lam.training.labels import has_labels
from hf_lam.training.models import load_config, load_model, load_pretrained
from hf_lam.training.sources import SOURCE

# What text columns are usually called, one or a pair.
USUAL_COLUMNS = (
    ("sentence",),
    ("text",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "answer"),
)


@dataclass
class TextArguments(DataArguments):
    text_column_names: list[str] | None = field(
        default=None, metadata={"help": "The column with the text, or two columns for pairs of texts."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Cut longer texts to this many tokens."})
    pad_to_max_length: bool = field(
        default=False,
        metadata={"help": "Pad all texts to --max_seq_length instead of to the longest of their batch."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_column_names is not None and len(self.text_column_names) not in (1, 2):
            raise ValueError(f"--text_column_names takes one column or two, got {' '.join(self.text_column_names)}.")
        if self.max_seq_length < 1:
            raise ValueError(f"--max_seq_length must be at least 1, got {self.max_seq_length}.")


def find_text_columns(dataset: Any, arguments: TextArguments) -> list[str]:
    if arguments.text_column_names is not None:
        return arguments.text_column_names
    columns = columns_of(dataset)
    for names in USUAL_COLUMNS:
        if set(names) <= set(columns):
            return list(names)
    strings = [
        name
        for name, feature in (dataset.features or {}).items()
        if feature in (Value("string"), Value("large_string")) and name != arguments.label_column_name
    ]
    if len(strings) != 1:
        raise ValueError(f"say with --text_column_names which column is the text; the data have {', '.join(columns)}.")
    return strings


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(ModelArguments, TextArguments, __doc__, arguments)
        text_columns = find_text_columns(next(iter(task.splits.values())), task.data)
        check_texts(task.splits, text_columns, task.sources)
        config = load_config(task.arguments, task.labels)
        model = load_model(task.arguments, AutoModelForSequenceClassification, config, task.training.do_train)
        name = str(task.arguments.processor_name_or_path or task.arguments.model_name_or_path)
        tokenizer = load_pretrained(AutoTokenizer, name, task.arguments)
        lengths = (task.data.max_seq_length, tokenizer.model_max_length, max_length_of(find_encoder(model)))
        mechanisms = [config for base in injected_encoders(model) for config in injection_of(base).configs.values()]
        # Those that take any length have None.
        max_length = min(filter(None, (*lengths, *(config.max_tokens for config in mechanisms))))

        def tokenize(batch: dict[str, list[Any]], split: str, is_labelled: bool) -> dict[str, Any]:
            def place(index: int) -> str:
                sample = {name: values[index] for name, values in batch.items()}
                return f"{name_of_sample(sample, task.sources[split])} of the split {split!r}"

            texts = [batch[name] for name in text_columns]
            for name, column in zip(text_columns, texts, strict=True):
                if None in column:  # of a stream, which was not looked at before
                    raise ValueError(f"{place(column.index(None))} has no text in {name!r}.")
            padding = "max_length" if task.data.pad_to_max_length else False
            made = {**tokenizer(*texts, truncation=True, max_length=max_length, padding=padding)}
            if split == "test":
                made[SOURCE] = batch[SOURCE]
            if is_labelled:
                made["labels"] = []
                for index, label in enumerate(batch[task.data.label_column_name]):
                    try:
                        made["labels"].append(task.labels.encode(label))
                    except ValueError as error:
                        raise ValueError(f"{place(index)}: {error}") from error
            return made

        options = {} if task.data.streaming else {"num_proc": task.data.preprocessing_num_workers}
        with task.training.main_process_first(desc="tokenizing"):
            splits = {
                split: dataset.map(
                    tokenize,
                    batched=True,
                    remove_columns=stored_columns(dataset),
                    fn_kwargs={
                        "split": split,
                        "is_labelled": has_labels(split, task.splits[split], task.data),
                    },
                    **options,
                )
                for split, dataset in limited(task.splits, task.data, task.training.seed).items()
            }
        is_half = task.training.mixed_precision != "no"
        collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if is_half else None)
        trainer = make_trainer(task, model, AutoModelForSequenceClassification, splits, tokenizer, collator)
    return run(trainer, task, splits, "text-classification")


if __name__ == "__main__":
    main()
