"""Recognises files that are not checkpoints of a GPT-2, and says how to convert them.

Tables only; the readers ask here when they cannot continue. Only the beginning of a file is examined, and no
table here decides that a file is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

INCOMPLETE = "probably an incomplete download"
BEGIN_BYTES = 512  # enough for every mark below

_RESAVE = "run torch.save(torch.load(path, weights_only=True), path) with torch >= 1.6"
_HF = 'convert it: AutoModelForCausalLM.from_pretrained(folder, {}).save_pretrained("my-gpt2")'
_TF, _FLAX = (_HF.format(f"from_{kind}=True") + " with transformers < 5" for kind in ("tf", "flax"))
_NAMED = "save it with names: safetensors.numpy.save_file(weights, path)"
_MARKS = (
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
     f"an old-style torch pickle (not a zip), from before torch 1.6; re-save it: {_RESAVE}"),
    (0, b"\x80", "a plain pickle, not a torch file; load it and re-save it: torch.save(weights, path)"),
    (257, b"ustar", f"a tar archive, perhaps an old torch file (before 0.4); re-save it: {_RESAVE}"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the data; run `git lfs pull`"),
    (0, b"GGUF", "a GGUF file; " + _HF.format("gguf_file=name")),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file of TensorFlow; " + _TF),
    (0, b"\x93NUMPY", "a NumPy array; " + _NAMED),
    (0, b"\xc6\xd74\x01", "a file of llm.c; convert it to a Hugging Face folder with dev/eval/export_hf.py"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first: tar -xf or gunzip"),
    (0, b"BZh", "a bzip2 archive; unpack it first: tar -xf or bunzip2"),
    (0, b"\xfd7zXZ", "an xz archive; unpack it first: tar -xf or unxz"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"PK\x03\x04", "a zip archive (perhaps a torch file; then it should end in .pth or .bin)"),
    (0, b"<", "an HTML or XML page; the download went wrong"),
    (0, b"{", "JSON text, not weights"),
)  # fmt: skip
_ENDINGS = {
    ".gguf": "a GGUF file of llama.cpp; load the folder or the repository that it was made from",
    ".ggml": "a GGML file of llama.cpp; load the folder or the repository that it was made from",
    ".onnx": "an ONNX program; load the model that it was exported from",
    ".h5": "TensorFlow weights; " + _TF,
    ".msgpack": "Flax weights; " + _FLAX,
    ".index": "a TensorFlow checkpoint; convert it with load_tf_weights_in_gpt2 of transformers < 5",
    ".meta": "a TensorFlow checkpoint; convert it with load_tf_weights_in_gpt2 of transformers < 5",
    ".zip": "a zip archive of files; unpack it and load the folder",
    ".npz": "NumPy arrays; " + _NAMED,
    ".npy": "a NumPy array; " + _NAMED,
    ".pkl": "a pickle; load it and save the weights: torch.save(weights, 'weights.pt')",
    ".incomplete": "an unfinished download; download it again",
    ".json": "text, not weights; give the folder that holds it",
    ".distcp": "a part of a distributed checkpoint; convert its folder: "
               "python -m torch.distributed.checkpoint.format_utils dcp_to_torch folder model.pt",
}  # fmt: skip
# a file (or pattern) in a folder without weights -> what the folder is
_FOLDERS = (
    (".metadata", "a distributed checkpoint (FSDP); convert it: "
     "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pt"),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint; convert it: cd {folder} && python zero_to_fp32.py . out"),
    ("*zero_pp_rank*", "a DeepSpeed checkpoint in parts; convert it with the zero_to_fp32.py above it"),
    ("snapshots", "a repository in the hub's cache; load the folder under snapshots in it"),
    ("*.incomplete", "an unfinished download; download it again"),
    ("*.gguf", _ENDINGS[".gguf"]), ("*.onnx", _ENDINGS[".onnx"]),
    ("flax_model*.msgpack", "Flax weights; " + _FLAX),
    ("tf_model*.h5", "TensorFlow weights; " + _TF),
    ("*.ckpt*.index", _ENDINGS[".index"]), ("*.npz", _ENDINGS[".npz"]), ("*.pkl", _ENDINGS[".pkl"]),
    ("*.zip", _ENDINGS[".zip"]),
)  # fmt: skip
OWN = (
    "a circuit, graph or training checkpoint of attnsparse under another name; use load_circuit, load_graph "
    "or train_transcoders, or give a training checkpoint the ending .checkpoint.safetensors"
)
ADAPTER = (
    "a PEFT adapter (LoRA or the like), not a model; merge it: "
    "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained('merged')"
)
#: files of ours, and those that trainers write beside the weights
NO_WEIGHTS = ("*.circuit.safetensors", "*.search.safetensors", "*.graph.safetensors",
              "*.checkpoint.safetensors",
              "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin",
              "scaler.pt", "rng_state.pth", "rng_state_*.pth", "random_states_*.pt")  # fmt: skip
# part of a tensor's name -> whose it is; the first that is found decides
_FAMILIES = (
    *((part, "a quantized model") for part in ("weight_scale", "qweight", "qzeros", ".absmax", ".SCB")),
    ("lora_", "a LoRA adapter"), ("_flat_param", "one rank of an FSDP checkpoint (flat parameters)"),
    ("gpt_neox.", "GPT-NeoX or Pythia"),
    ("attn.attention.q_proj", "GPT-Neo"), ("attn.q_proj", "GPT-J or CodeGen"),
    ("mlp.gate_proj", "the LLaMA kind (LLaMA, Mistral, Qwen, Gemma)"), ("self_attn.qkv_proj", "Phi"),
    ("decoder.layers.0.fc1", "OPT"),
    ("encoder.layer.0.", "BERT or RoBERTa"),
    ("transformer.layer.0.", "DistilBERT"),
    ("self_attention.query_key_value", "BLOOM or Falcon"),
    ("decoder.block.0.", "T5"), ("mixer.A_log", "Mamba"),
    ("mlp.router", "a mixture of experts"), ("tok_embeddings.", "LLaMA"),
    ("self_attn.q_proj", "the LLaMA or OPT kind"), ("positions_embed.", "GPT-1"), ("tokens_embed.", "GPT-1"),
)  # fmt: skip
_LEADS_OUT = {
    "a quantized model": "save it in full: model.dequantize().save_pretrained(folder)",
    "a LoRA adapter": "merge it into its base: PeftModel.from_pretrained(base, folder).merge_and_unload()",
    "one rank of an FSDP checkpoint (flat parameters)": "save it with StateDictType.FULL_STATE_DICT",
}
#: what users call a model -> its repository on the hub
SHORT_NAMES = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    "gpt2-small": "openai-community/gpt2", "distilgpt2": "distilbert/distilgpt2",
    "distil-gpt2": "distilbert/distilgpt2",
}  # fmt: skip


def kind_of_bytes(begin: bytes) -> str | None:
    """What a file is by its first BEGIN_BYTES bytes, with the way out; None if it is not known."""
    return next((what for at, mark, what in _MARKS if begin[at:].startswith(mark)), None)


def kind_of_ending(path: Path) -> str | None:
    """What a file is by its ending."""
    return _ENDINGS.get(path.suffix.lower())


def kind_of_folder(folder: Path) -> str | None:
    """What a folder without weights is."""
    for pattern, what in _FOLDERS:
        if any(folder.glob(pattern)):
            return what.format(folder=folder.name)
    return None


def family_of(names: Iterable[str]) -> str | None:
    """Which other kind of model these tensors are of, and what to do; None if none is known."""
    text = "\n".join(names)
    for part, family in _FAMILIES:
        if part in text:
            way = _LEADS_OUT.get(family, "only models of GPT-2's architecture are read")
            return f"weights of {family}; {way}"
    return None
