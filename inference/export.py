"""Export a network for use without this project: LiteRT, ONNX, TensorFlow's SavedModel, or the Hugging Face Hub.

Reads:  a network of single faces and its card
Writes: DIR/NAME.tflite, DIR/NAME.onnx or the folder DIR/NAME (SavedModel), and beside it DIR/NAME.json, the card with
        the preprocessing; for the Hub the folder DIR/NAME with the network, its card and README.md

    python -m inference.export --model models/pretrained.keras --format litert --int8 --output exported
    python -m inference.export --model models/pretrained.keras --format hub --output exported

The export needs TensorFlow, and ONNX also tf2onnx: pip install -e ".[all,export]"
"""

import shutil
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from common.command_line import run
from common.errors import InputError
from common.files import write_file
from configuration import PATHS
from inference.crops import BOX_SIDE, TEMPLATE
from inference.emotion_classifier import converted_classifier
from inference.keras_networks import check_whole, export_network, load_pixel_network
from inference.lineage import hashes_file
from inference.model_card import ModelCard, card_content, card_path, check_unchanged, read_card

SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "tf_saved_model": "", "hub": ""}  # a folder has none
_UNZIPPED = ("config.json", "metadata.json", "model.weights.h5")  # `load_model("hf://...")` reads these files
_METRICS = {  # entry of a score -> its type on the Hub, and its name
    "accuracy": ("accuracy", "Accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
}
_README = """---
{header}---

# {name}

This Keras network classifies the expression of one face: {labels}.

- Input: {input}.
- Crop: {crop}.
- Output: {output}. The temperature is {temperature}.

```python
import keras

network = keras.saving.load_model("hf://USER/{name}")  # or a copy of {name}.keras
probabilities = network.predict(crops)
```

`{name}.json` is the network's card: labels, preprocessing, data, lineage, settings and scores.

## Scores

{scores}

## Limits

{limits}
- The EU AI Act prohibits emotion recognition at work and in schools, apart from medical and safety uses.
"""


def main(
    format: Annotated[str, typer.Option(help=f"Format: {', '.join(SUFFIXES)}.")],
    output: Annotated[Path, typer.Option(help="Folder to write the network and its card to.")],
    model: Annotated[Path, typer.Option(help="Trained network, with its card beside it.")] = PATHS.pretrained,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the weights to 8 bits (litert only).")] = False,
) -> None:
    """Export a network and its card for use without this project."""
    print(f"network: {export(model, format, output, int8)}")


def export(model_file: Path, kind: str, output: Path, int8: bool = False) -> Path:
    """Export a network, with its card beside it.

    All formats but `hub` take uint8 pixels, also where the Keras network takes scaled floats.

    Args:
        model_file: The `.keras` file, with its card.
        kind: A key of `SUFFIXES`.
        output: Folder to write to; created if it is missing.
        int8: Quantise the weights to 8 bits, for `litert` only.

    Returns:
        The file, or the folder of `tf_saved_model` and `hub`.

    Raises:
        InputError: The network, its card or an option cannot be used, the target exists, or tf2onnx is missing.
    """
    card, target = read_card(model_file), output / f"{model_file.stem}{SUFFIXES.get(kind, '')}"
    exported_card = card_path(output / model_file.name)
    content = card_content(_with_preprocessing(replace(card, input_range=None)))
    _check(kind, target, int8)
    if kind != "hub" and exported_card.exists() and exported_card.read_bytes() != content:
        raise InputError(f"{exported_card} is another card, which would be replaced; give another --output")
    check_unchanged(card, model_file)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".export-") as scratch:
        made = Path(scratch) / target.name
        if kind == "hub":
            _write_hub_folder(model_file, card, made)
        else:
            if kind == "litert":
                shutil.copyfile(converted_classifier(model_file, card, Path(scratch), int8), made)
            else:
                network = load_pixel_network(model_file, card)
                export_network(network, made, kind, f"{model_file} cannot be exported as {kind}", "this format")
            write_file(exported_card, content)
        made.replace(target)
    return target


def _check(kind: str, target: Path, int8: bool) -> None:
    """Refuse options that cannot be used, before a network is loaded."""
    if kind not in SUFFIXES:
        raise InputError(f"--format {kind} is not one of {', '.join(SUFFIXES)}")
    if int8 and kind != "litert":
        raise InputError(f"--int8 needs --format litert, not {kind}")
    if kind == "onnx" and not find_spec("tf2onnx"):
        raise InputError("--format onnx needs tf2onnx; install it: pip install -e '.[export]'")
    if target.exists():
        raise InputError(f"{target} exists already; remove it, or give another --output")


def preprocessing(card: ModelCard) -> dict[str, Any]:
    """Return how images become the input of a network, and its output becomes probabilities, in words and numbers."""
    shape = f"(n, {card.input_size}, {card.input_size}, {card.channels})"
    kind, (low, high) = ("float32", card.input_range) if card.input_range else ("uint8", (0, 255))
    crop = f"the square with the centre of the face's box and {BOX_SIDE} of its height"
    template = {}
    if card.align == "landmarks":
        crop = (
            "the similarity transform that maps left eye, right eye, nose, left and right corner of the mouth (left as "
            "the viewer sees them) to `template`, in fractions of the crop's side"
        )
        template = {"template": [[round(float(value), 4) for value in point] for point in TEMPLATE]}
    return {
        "input": f"{kind} {shape}, {'gray' if card.channels == 1 else 'RGB'}, black {low:g}, white {high:g}",
        "crop": crop,
        **template,
        "output": "probabilities of the labels; calibrated: p ** (1 / temperature), divided by the sum",
    }


def _with_preprocessing(card: ModelCard) -> ModelCard:
    return replace(card, other=card.other | {"preprocessing": preprocessing(card)})


def _write_hub_folder(model_file: Path, card: ModelCard, folder: Path) -> None:
    """Write a folder for the Hugging Face Hub, from which Keras loads the network."""
    check_whole(model_file)
    if card_path(model_file).name in _UNZIPPED:
        raise InputError(f"{model_file} has the name of a file of Keras; rename the network and its card")
    folder.mkdir()
    with zipfile.ZipFile(model_file) as archive:
        for name in _UNZIPPED:
            archive.extract(name, folder)
    for file in (model_file, hashes_file(model_file)):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    card_path(folder / model_file.name).write_bytes(card_content(_with_preprocessing(card)))
    (folder / "README.md").write_text(_readme(model_file.stem, card), encoding="utf-8")


def _readme(name: str, card: ModelCard) -> str:
    import yaml  # late: only the Hub needs it

    described = preprocessing(card)
    return _README.format(
        header=yaml.safe_dump(_header(name, card), sort_keys=False, allow_unicode=True, width=1000),
        name=name,
        labels=", ".join(card.labels),
        input=described["input"],
        crop=" ".join(str(described[part]) for part in ("crop", "template") if part in described),
        output=described["output"],
        temperature=card.temperature,
        scores="\n".join(map(_score_line, card.scores)) or "No score has been measured.",
        limits="\n".join(f"- {caveat}" for caveat in card.caveats),
    )


def _header(name: str, card: ModelCard) -> dict[str, Any]:
    """Return the metadata of the Hub; https://huggingface.co/docs/hub/model-cards."""
    results = [
        {
            "task": {"type": "image-classification", "name": "Facial expression recognition"},
            "dataset": {
                "type": score["dataset"],
                "name": score["dataset"],
                "split": score["split"],
                "args": {"protocol": score["protocol"]} | ({"n": score["n"]} if "n" in score else {}),
            },
            "metrics": [
                {"type": kind, "value": score[entry], "name": metric}
                for entry, (kind, metric) in _METRICS.items()
                if entry in score
            ],
        }
        for score in card.scores
        if "banner" not in score  # of images that the network knows, or may know
    ]
    return {
        "library_name": "keras",
        "license": "other",  # FER2013 and CK+ are for research only
        "pipeline_tag": "image-classification",
        "tags": ["facial-expression-recognition"],
        **({"model-index": [{"name": name, "results": results}]} if results else {}),
    }


def _score_line(score: dict[str, Any]) -> str:
    metrics = ", ".join(f"{name} {score[entry]}" for entry, (_, name) in _METRICS.items() if entry in score)
    number = f", n = {score['n']:,}" if "n" in score else ""
    banner = f". {score['banner']}" if "banner" in score else ""
    return f"- {score['dataset']}, {score['split']}{number}: {metrics} ({score['protocol']}){banner}"


if __name__ == "__main__":
    run(main)
