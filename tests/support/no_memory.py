"""What may be said when an allocation of the core fails: the thing that it was for, and nothing else."""

from __future__ import annotations

import re

AMOUNT = r"(?!0\.?0* )[0-9][0-9.,]* (?:bytes?|[kMGT]i?B)"
RUNS = (
    r"(Model\.(run|generate|evaluate)|Run\.|Gradients\.|effects\.|circuits\.|(Component|Node)(Circuit|Scores)\.|"
    r"Transcoders\.|Graph\.check|_core\.(Model|Run|Circuit)|asp\.|cache\.)"
)
FEATURES = r"(Transcoders\.|_core\.Features|_core\.Contexts\.add|_core\.Model\.|asp\.|Graph\.)"
CIRCUITS = (
    r"(asp\.find_circuit|effects\.|Run\.to_html|circuits\.(entry_effects|table)|_core\.(Model|Circuit))"
)
COMPONENTS = (
    r"(circuits\.((component|node)_|table)|_core\.Model\.component_|_core\.component_|"
    r"(Component|Node)(Circuit|Scores)\.)"
)
PATCHING = r"(circuits\.(patching_sweep|path_patch)|_core\.Model\.(patching_sweep|path_values))"
ACDC = r"(circuits\.component_acdc(_sweep)?|_core\.Model\.component_acdc)"
MASKS = r"(circuits\.component_mask(s|_gradients)|_core\.Model\.component_(masks|gradients))"
LENS = r"(Run\.|Model\.composition|ActivationCache\.|_core\.Run\.|_core\.Model\.(composition|lens_project))"
STAGE = "(whole model|knock-out|keep only|leave one out|attribution)"
GRAPHS = r"(Graph\.|graphs\.table|_core\.|asp\.)"

#: sentence -> the public names whose calls may say it
SENTENCES = {
    r"no memory for a model": "",
    r"no memory to choose how this model is computed": "",
    rf"the weights of this model need {AMOUNT}, which could not be allocated": "",
    r"no memory for the scratch of a product of \d+ rows with a matrix of \d+ x \d+": "",
    r"no memory for (a run|the tokens of a run)": RUNS,
    rf"this run needs {AMOUNT}, which could not be allocated": RUNS,
    r"no memory for the open edges of a run; raise edge_threshold to keep fewer": RUNS,
    rf"generating \d+ texts? needs {AMOUNT}, which could not be allocated":
        r"((_core\.)?Model\.generate|Transcoders\.steer)",
    r"no memory for the norms of a run": r"(_core\.)?Run\.(value_norms|to_html|open_edges|heads)",
    r"no memory for \d+ scores": r"(_core\.)?Run\.(entry_scores|to_html|open_edges|heads)",
    r"no memory for gradients": r"(Model\.gradients|Gradients\.|_core\.(Model\.gradients|Gradients))",
    rf"these gradients need {AMOUNT}, which could not be allocated":
        r"(Model\.gradients|Gradients\.|_core\.(Model\.gradients|Gradients))",
    rf"forward and backward of \d+ tokens need {AMOUNT}, which could not be allocated; use smaller batches":
        r"(Model\.|Gradients\.|effects\.|circuits\.|(Component|Node)(Circuit|Scores)\.|_core\.|asp\.|Transcoders\.|"
        r"Trainer\.)",
    r"no memory for (interventions|what is frozen)": RUNS,
    r"no memory to steer features": r"(Transcoders\.steer|_core\.Model\.(run|generate))",
    r"no memory for \d+ variants": r"(effects\.|Run\.to_html|circuits\.entry_effects|_core\.|asp\.)",
    r"no memory for a sweep over \d+ rows": r"(effects\.|Run\.to_html|circuits\.entry_effects|_core\.|asp\.)",
    rf"attribution over \d+ tokens needs {AMOUNT}; use fewer prompts at once":
        r"(effects\.|circuits\.entry_effects|_core\.|asp\.)",
    rf"resampling \d+ prompts at \d+ sizes needs {AMOUNT}, which could not be allocated":
        r"(_core\.(curve_|Circuit)|asp\.find_circuit|circuits\.table)",
    r"no memory for the intervals of \d+ resamples": r"(_core\.(curve_band|Circuit)|asp\.find_circuit)",
    r"no memory for (a circuit|a random order of \d+ items|a list of \d+ items)": CIRCUITS,
    r"no memory for the curves of \d+ resamples at \d+ sizes": CIRCUITS,
    r"no memory for the metric (of \d+ prompts|at \d+ more sizes)": CIRCUITS,
    rf"a circuit of \d+ items at \d+ sizes needs {AMOUNT}, which could not be allocated": CIRCUITS,
    rf"the scores of \d+ items need {AMOUNT}, which could not be allocated": CIRCUITS,
    rf"a round of elimination among \d+ items needs {AMOUNT}, which could not be allocated": CIRCUITS,
    r"no memory to check the order of \d+ items": CIRCUITS,
    rf"{STAGE}: no memory for (the prompts|the (order|scores) of \d+ items)": CIRCUITS,
    rf"{STAGE}: no memory for means and open entries, which take {AMOUNT}": CIRCUITS,
    r"no memory for the open entries of a task": CIRCUITS,
    r"no memory for the effects of an entry in \d+ heads": CIRCUITS,
    r"component scores: no memory for the prompts": COMPONENTS,
    r"(circuits|exact): no memory for the (prompts|senders of a model)": COMPONENTS,
    rf"circuits: no memory for \d+ senders in \d+ prompts, which takes {AMOUNT}": COMPONENTS,
    r"(circuits|exact): no memory for what replaces senders in \d+ prompts, which takes .+": COMPONENTS,
    rf"exact scores of \d+ prompts at once need {AMOUNT}, which could not be allocated": COMPONENTS,
    r"no memory for the order of \d+ (component edges|scores)": COMPONENTS,
    rf"component scores of \d+ prompts need {AMOUNT}, which could not be allocated": COMPONENTS,
    r"no memory for mean activations of \d+ positions": rf"({COMPONENTS}|{ACDC})",
    r"(path )?patching: no memory for the prompts": PATCHING,
    rf"(path )?patching: no memory for \d+ rows, which take {AMOUNT}": PATCHING,
    rf"(path )?patching: no memory for what replaces senders in \d+ prompts, which takes {AMOUNT}": PATCHING,
    rf"(path )?patching: no memory for the means of \d+ prompts, which take {AMOUNT}": PATCHING,
    r"acdc: no memory for (the prompts|a model's senders)": ACDC,
    rf"acdc: no memory for (what replaces|the outputs of) senders in \d+ prompts, which takes {AMOUNT}": ACDC,
    rf"acdc: no memory for \d+ senders in \d+ prompts, which takes {AMOUNT}": ACDC,
    rf"the logits of a lens need {AMOUNT}, which could not be allocated": LENS,
    rf"the attribution of \d+ logits needs {AMOUNT}, which could not be allocated": LENS,
    r"no memory for the direction of a logit": LENS,
    rf"composition scores of \d+ heads need {AMOUNT}, which could not be allocated": LENS,
    r"(masks|mask gradients): no memory for the prompts": MASKS,
    rf"masks: no memory for \d+ masks, which take {AMOUNT}": MASKS,
    rf"(masks|mask gradients): no memory for what replaces senders in \d+ prompts, which takes {AMOUNT}":
        MASKS,
    rf"(masks|mask gradients): no memory for the senders and receivers of \d+ prompts, which take {AMOUNT}":
        MASKS,
    r"no memory for a trainer": r"(_core\.Trainer|Trainer|asp\.)",
    rf"training needs {AMOUNT} for gradients and moments, which could not be allocated":
        r"(_core\.Trainer|Trainer|asp\.)",
    rf"the gradients of one more part of a step need {AMOUNT}, which could not be allocated":
        r"_core\.Trainer",
    r"no memory for the parts of a step": r"(_core\.Trainer|Trainer|asp\.)",
    r"no memory for a transcoder": r"(_core\.|Transcoder|asp\.)",
    rf"a transcoder of \d+ features needs {AMOUNT} to be trained, which could not be allocated":
        r"(_core\.|Transcoder|asp\.)",
    rf"a step on \d+ rows needs {AMOUNT}, which could not be allocated; try fewer rows":
        r"(_core\.|Transcoder|asp\.)",
    r"no memory (for features|for the features of layer \d+|to decode features)": FEATURES,
    r"no memory for (the active features|the layers of transcoders)": FEATURES,
    r"no memory for what transcoders (write|leave unexplained)": FEATURES,
    r"no memory for contexts": r"(_core\.Contexts|asp\.describe_features)",
    rf"the contexts of \d+ features need {AMOUNT}, which could not be allocated":
        r"(_core\.Contexts|asp\.describe_features)",
    rf"the tokens that features promote need {AMOUNT} of scratch":
        r"(_core\.Model\.promoted_tokens|asp\.describe_features)",
    rf"the (first weights|threshold) of a transcoder needs? {AMOUNT} of scratch":
        r"(_core\.first_weights|asp\.train_transcoders)",
    rf"the scale of a transcoder's outputs needs {AMOUNT} of scratch":
        r"(_core\.first_weights|asp\.train_transcoders)",
    r"no memory for a graph of \d+ targets": GRAPHS,
    rf"a graph with \d+ writes needs {AMOUNT}": GRAPHS,
    r"no memory for a product of a graph": GRAPHS,
    rf"the heads of a graph need {AMOUNT} of scratch": GRAPHS,
    r"no memory for the shares of \d+ heads": GRAPHS,
    rf"the (largest )?pairs of sources (of a score )?need {AMOUNT} of scratch": GRAPHS,
    r"no memory for the influence of \d+ edges": GRAPHS,
    r"no memory to prune a graph of \d+ edges": GRAPHS,
    r"no memory for the scores of a graph of \d+ edges": GRAPHS,
    rf"no memory for a graph of \d+ nodes and \d+ edges, which takes {AMOUNT}": GRAPHS,
    r"no memory for the effects of \d+ sources on \d+ features and logits": GRAPHS,
    r"no memory to rank the logits of \d+ tokens": GRAPHS,
    r"no memory to put \d+ writes in order": GRAPHS,
    r"no memory for the influence of \d+ nodes": GRAPHS,
    r"no memory for what flows from \d+ nodes to \d+ groups": GRAPHS,
    # of NumPy and of Python themselves
    r"Unable to allocate .* for an array with shape .*": "",
}  # fmt: skip


def untrue(name: str, texts: list[str]) -> list[str]:
    """The sentences that a call of this public name may not say when an allocation fails."""
    allowed = [sentence for sentence, names in SENTENCES.items() if re.match(names, name)]
    return [text for text in texts if not any(re.fullmatch(sentence, text) for sentence in allowed)]
