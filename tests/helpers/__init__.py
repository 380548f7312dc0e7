"""What several tests share. Imported as `helpers`: `pythonpath` in pyproject.toml puts `tests` on the path.

- `hosts`, `lam_models`, `fusion_models`: tiny models with and without mechanisms, and inputs for them;
- `families`, `family_labels`, `refused_hosts`: tiny encoders of every family, labels for their heads, and what they
  can carry; `outputs`: what models return;
- `injection`: models with mechanisms, and that nothing is left of them;
- `attention`, `locomt_attention`, `stt_attention`: formulas, inputs and paddings for the attention functions alone;
- `door`: mechanisms from files that are not hf_lam's, registered for a while;
- `hf_lam_trainer`: short runs of the trainer; `distributed_worker`: what runs in two processes;
- `finetuning`, `scripts`: the scripts of `examples/`, with small checkpoints and data for them;
- `processes`, `command_line`: Python in a fresh process, and `hf-lam` in this one;
- `hub_server`, `card_metadata`: a Hub on this machine, and how it reads cards;
- `pushing`, `verification`: what a push leaves there, and folders for `verify`.
"""
