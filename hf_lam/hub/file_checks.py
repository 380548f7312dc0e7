"""Checks of the files of a repository that are neither code nor weights: of what kind they are and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..modeling.license_hf_lam import LICENSE, LICENSE_FILE
from .repository_files import Finding, RepositoryFiles, UnreadableError, leaves_folder

HARMLESS = re.compile(
    r"\.(json|jsonl|md|rst|txt|csv|tsv|yaml|yml|bib|cff|jinja|model|png|jpg|jpeg|gif|webp|svg|safetensors|py)"
)
HARMLESS_NAMES = re.compile(
    r"\.gitattributes|\.gitignore|(LICENSE|NOTICE|COPYING|README|AUTHORS)(-\w+)?|.*\.tfevents\.[\w.-]+"
)
PICKLES = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt|joblib|npy|npz|dill|cloudpickle|p)")
OTHER_WEIGHTS = re.compile(r"\.(h5|hdf5|keras|msgpack|onnx|tflite|pb|gguf|ggml|ot|mlmodel|pte|pt2)")
BINARIES = re.compile(r"\.(py[cod]|so|dll|dylib|exe|o|a|lib|whl|egg|jar|class|wasm|com|bat|msi)")
_EXECUTABLE_HEADS = (
    b"\x7fELF",
    b"MZ",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
)
# What a pickle needs to call something when it is read.
_CALLING_OPCODES = re.compile(r"GLOBAL|STACK_GLOBAL|INST|OBJ|NEWOBJ|NEWOBJ_EX|REDUCE|BUILD|EXT[124]|PERSID|BINPERSID")

# Files that the Auto classes look for besides code and weights.
READ = re.compile(
    r"(config|generation_config|adapter_config|preprocessor_config|video_preprocessor_config|processor_config"
    r"|audio_tokenizer_config|tokenizer_config|tokenizer|vocab|special_tokens_map|added_tokens|chat_template)\.json"
    r"|vocab\.txt|merges\.txt|chat_template\.jinja|additional_chat_templates/.*|[\w.-]+\.model"
)
# Large and without anything that names code; the last is what `Trainer` writes, and loading a model does not read it.
_PLAIN_DATA = ("tokenizer.json", "vocab.json", "trainer_state.json")

# Of one configuration, of an index of weights, and of all JSON that is parsed: objects take many times their text.
_MOST_CONFIG_BYTES = 2_000_000
_MOST_INDEX_BYTES = 20_000_000
_MOST_JSON_BYTES = 20_000_000

# Where configurations name files of this machine or of the repository.
_PATHS = re.compile(r"vocab|merges|source_spm|target_spm|transformers_weights|.*_(path|dir|file)")
# Where something once was, which nothing reads.
_NO_PATHS = ("_name_or_path", "name_or_path", "special_tokens_map_file")

# Processors and tokenizers that were looked through: they read their own files and nothing else.
_TOKENIZERS = (
    "Albert Bert CLIP Camembert ConvBert Deberta DebertaV2 DistilBert Electra GPT2 Herbert LayoutLM MPNet MobileBert "
    "Esm LayoutLMv3 MBart Roberta Siglip Siglip2 SqueezeBert T5 Wav2Vec2CTC Whisper XLMRoberta XLNet"
)
_IMAGE_PROCESSORS = "Beit Bit CLIP ConvNext DINOv3ViT DeiT Siglip Siglip2 ViT VideoMAE Vivit"
_CLASSES = frozenset(
    [
        *("HfLamFusionProcessor", "VideoMAEVideoProcessor", "VJEPA2VideoProcessor"),
        *(f"{name}Processor" for name in ("CLIP", "Siglip", "Siglip2", "TrOCR")),
        *(f"{name}Processor" for name in ("Wav2Vec2", "Wav2Vec2Bert", "Whisper")),
        *(f"{name}FeatureExtractor" for name in ("AST", "SeamlessM4T", "Wav2Vec2", "Whisper")),
        *("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "SentencePieceBackend"),
        *(f"{name}Tokenizer{kind}" for name in _TOKENIZERS.split() for kind in ("", "Fast")),
        *(f"{name}ImageProcessor{kind}" for name in _IMAGE_PROCESSORS.split() for kind in ("", "Fast", "Pil")),
        *(f"{name}FeatureExtractor" for name in _IMAGE_PROCESSORS.split()),  # as they were called once
    ]
)
_CLASS_KEYS = (
    *("processor_class", "tokenizer_class", "image_processor_type", "feature_extractor_type"),
    "video_processor_type",
)
# transformers fetches the code of other kernels, by their names or where a package is missing.
_ATTENTION = (None, "eager", "sdpa", "flex_attention")


def suffix_of(name: str) -> str:
    base = name.rpartition("/")[2]
    return "." + base.rpartition(".")[2].lower() if "." in base else ""


def check_kinds(files: RepositoryFiles) -> list[Finding]:
    """Findings for pickles, other weights, compiled code and files of an unknown kind, by their names and contents."""
    findings = []
    for name in files.sizes:
        found = check_name(name)
        findings += _check_contents(files, name) if found is None else [found]
    if LICENSE_FILE in files.sizes and not _is_our_license(files):
        findings.append(Finding("file", LICENSE_FILE, "is not the licence that hf_lam comes with"))
    return findings


def _is_our_license(files: RepositoryFiles) -> bool:
    try:
        return files.read(LICENSE_FILE, len(LICENSE)) == LICENSE.encode()
    except UnreadableError:
        return False


def check_name(name: str) -> Finding | None:
    """The finding for a pickle, other weights, compiled code or a file of an unknown kind, as far as its name says."""
    suffix = suffix_of(name)
    if PICKLES.fullmatch(suffix):
        return Finding("pickle", name, f"{suffix} files hold pickles, which run code when they are read")
    if OTHER_WEIGHTS.fullmatch(suffix):
        return Finding("weights", name, f"{suffix} files are not safetensors")
    if BINARIES.fullmatch(suffix):
        return Finding("binary", name, f"{suffix} files hold compiled code or commands")
    if not HARMLESS.fullmatch(suffix) and not HARMLESS_NAMES.fullmatch(name.rpartition("/")[2]):
        return Finding("file", name, "is of a kind that no hf_lam repository needs")
    return None


def _check_contents(files: RepositoryFiles, name: str) -> list[Finding]:
    head = files.beginning(name, 65536)
    if head is None:
        return []
    # The length of the header, which comes first, can look like the beginning of a pickle. Whether the rest is as it
    # should be is seen where weights are checked; what is not loaded as weights has a finding there.
    if suffix_of(name) == ".safetensors" and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return []
    if is_pickle(head):
        return [Finding("pickle", name, "holds a pickle, whatever its name says")]
    if head.startswith(b"PK\x03\x04"):
        return [Finding("pickle", name, "is a zip archive, as torch.save makes them around a pickle")]
    if head.startswith(b"\x93NUMPY"):
        return [Finding("pickle", name, "is a numpy file, which can hold a pickle")]
    if head.startswith(_EXECUTABLE_HEADS) or (head.startswith(b"#!") and suffix_of(name) != ".py"):
        return [Finding("binary", name, "is a program")]
    return []


def is_pickle(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a pickle of any protocol. They are read, not run."""
    import pickletools  # Here: transformers does not load it, and importing hf_lam loads nothing more.

    names: list[str] = []
    has_ended = False
    try:
        for opcode, _, _ in pickletools.genops(head):
            names.append(opcode.name)
        has_ended = True
    except Exception:  # Whatever the bytes are: what was read before is what counts.
        pass
    if names[:1] == ["PROTO"] and head[1] <= 5:
        return has_ended or len(names) > 3
    # Protocols 0 and 1 have no mark; many a text begins with a letter that is an opcode.
    return has_ended and any(map(_CALLING_OPCODES.fullmatch, names))


def read_configs(files: RepositoryFiles) -> tuple[dict[str, Any], list[Finding]]:
    """Every JSON file that transformers could read as a configuration, and findings for what is none."""
    configs, findings = {}, []
    left = _MOST_JSON_BYTES
    for name in files.sizes:
        base = name.rpartition("/")[2]
        if suffix_of(name) != ".json" or base in _PLAIN_DATA:
            continue
        most = _MOST_INDEX_BYTES if base.endswith(".index.json") else _MOST_CONFIG_BYTES
        try:
            if files.sizes[name] <= most and files.sizes[name] > left:
                raise UnreadableError(f"is one too many: more than {_MOST_JSON_BYTES} bytes of JSON in all")
            data = files.read(name, most)
            left -= len(data)
            configs[name] = json.loads(data.decode("utf-8"))
        except UnreadableError as error:
            findings.append(Finding("size", name, str(error)))
        except (ValueError, RecursionError, MemoryError) as error:
            findings.append(Finding("config", name, f"is not JSON: {error}"))
    return configs, findings


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested dictionaries and lists."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current.items()
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current


def check_references(configs: dict[str, Any]) -> list[Finding]:
    """Findings for what makes loading read from elsewhere: other repositories, and paths out of the folder."""
    findings = []
    for name, config in configs.items():
        base = name.rpartition("/")[2]
        if base.lower() == "audio_tokenizer_config.json":
            origin = config.get("audio_tokenizer_name_or_path") if isinstance(config, dict) else None
            findings.append(Finding("repository", name, f"makes a processor load the model {origin!r}"))
        # Some file systems do not tell capitals.
        if base.lower() == "adapter_config.json":
            origin = config.get("base_model_name_or_path") if isinstance(config, dict) else None
            findings.append(Finding("repository", name, f"is PEFT's, which would load the model {origin!r}"))
        is_read = READ.fullmatch(base) is not None
        for key, value in entries(config):
            if is_read:
                findings += _outside(name, key, value)
            if key == "attribute_map":
                findings.append(Finding("repository", name, f"{key} gives keys other names, which hides what they do"))
            if key in ("configuration_files", "fast_tokenizer_files") and value:
                findings.append(Finding("config", name, f"{key} lets other files take the place of the usual ones"))
            if key in _CLASS_KEYS and value is not None and not (isinstance(value, str) and value in _CLASSES):
                findings.append(Finding("repository", name, f"{key} {value!r} is not known to load nothing else"))
            if base == "audio_tokenizer_config.json" and key.startswith("audio_tokenizer"):
                continue
            if message := _reaches_out(key, value):
                findings.append(Finding("repository", name, message))
    return findings


def _outside(name: str, key: str, value: Any) -> list[Finding]:
    """Findings for paths in a value that leave the folder."""
    if key == "init_inputs":  # the arguments of a tokenizer, and so the names of its files
        texts = [text for text in _leaves(value) if isinstance(text, str)]
    elif _PATHS.fullmatch(key) and key not in _NO_PATHS:
        # A vocabulary itself, as a list, is made of tokens.
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        texts = [] if key in ("vocab", "merges") and isinstance(value, list) else texts
    else:
        return []
    return [
        Finding("path", name, f"{key} is {text!r}, which is not in the repository")
        for text in texts
        if leaves_folder(text)
    ]


def _reaches_out(key: str, value: Any) -> str:
    """The thing that a key makes loading fetch; empty if it fetches nothing."""
    if key.startswith("audio_tokenizer") and value:
        return f"{key}: a processor would load the model {_origin(value)!r}"
    if key == "repo_path":
        return f"{key}: an image processor would read from {value!r}"
    if key.endswith("_implementation") and key != "cache_implementation":
        strange = [kernel for kernel in _leaves(value) if not (kernel is None or kernel in _ATTENTION)]
        if strange:
            return f"{key} is {strange[0]!r}, for which transformers may load the code of a kernel"
    if key in ("use_pretrained_backbone", "use_timm_backbone") and value:
        return f"{key}: weights of another repository would be loaded"
    if key == "model_type" and isinstance(value, str) and value.startswith("timm"):
        return f"model_type {value!r} takes its model from timm"
    return ""


def _origin(value: Any) -> Any:
    return value.get("audio_tokenizer_name_or_path") if isinstance(value, dict) else value


def _leaves(value: Any) -> Iterator[Any]:
    """The values in nested dictionaries and lists that are neither."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current
        else:
            yield current
