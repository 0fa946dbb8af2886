"""Results of a search: the best settings, the table of the trials, and plots."""

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from common.command_line import counted
from common.files import atomic_file, write_file
from configuration import TrainingConfig
from inference.lineage import ImageHashes, write_hashes
from training.settings import settings_to_json

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
PLOTS = {
    "history": "plot_optimization_history",
    "importance": "plot_param_importances",
    "parallel_coordinates": "plot_parallel_coordinate",
}


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the highest dev accuracy, or None."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: trial.value or 0, default=None)


def describe(study: optuna.Study, trial: FrozenTrial) -> str:
    """Return a line on a finished trial, for the log."""
    best = best_trial(study)
    seconds = trial.duration.total_seconds() if trial.duration else 0
    epochs, accuracy = counted(len(trial.intermediate_values), "epoch"), trial.value or 0
    line = f"trial {trial.number}: {trial.state.name.lower()}, dev accuracy {accuracy:.4f} after {epochs}"
    return f"{line}, {seconds:.0f} s" + (f" (best: {best.value or 0:.4f}, trial {best.number})" if best else "")


def results_folder(settings_file: Path) -> Path:
    """Return the folder of the table and plots: `tuning/` for `tuned.json`."""
    return settings_file.with_name(settings_file.stem.replace("tuned", "tuning"))


def write_table(study: optuna.Study, folder: Path) -> None:
    """Write `trials.csv`: number, state, dev accuracy, times, parameters and notes of each trial."""
    from filelock import FileLock

    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "dev_accuracy": trial.value,
            "epochs": len(trial.intermediate_values),
            "started": trial.datetime_start,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            **trial.params,
            **trial.user_attrs,
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "trials.lock"), atomic_file(folder / "trials.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def write_results(
    study: optuna.Study,
    settings: TrainingConfig | None,
    start: dict[str, Any],
    found: dict[str, Any],
    images: ImageHashes,
    file: Path,
) -> None:
    """Write the settings of the best trial, the table of the trials and the plots, and print a summary.

    Args:
        study: The study.
        settings: Settings of its best trial; None if no trial is complete.
        start: Parameters of trial 0.
        found: Entries of the settings file about the search.
        images: The images that selected the settings.
        file: The settings file.
    """
    from filelock import FileLock

    folder = results_folder(file)
    write_table(study, folder)
    trials = study.get_trials(deepcopy=False)
    counts = {state.name.lower(): sum(t.state == state for t in trials) for state in (*FINISHED, TrialState.FAIL)}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    best = best_trial(study)
    if best is None or settings is None:
        print(f"{summary}; no trial is complete yet, so only {folder / 'trials.csv'} was written")
        return
    configured = next((t.value for t in trials if t.state == TrialState.COMPLETE and t.params == start), None)
    about = {
        **found,
        "images": images.content_hash,
        "trials": counts,
        "best_trial": best.number,
        "dev_accuracy": best.value,
        "dev_accuracy_of_trial_0": configured,
        "created": datetime.now(UTC).date().isoformat(),
        "optuna": optuna.__version__,
        "chosen_by": "highest dev accuracy of any epoch of any trial",
    }
    with FileLock(folder / "results.lock"):
        write_hashes(file.with_suffix(".keras"), images)
        text = json.dumps({"config": settings_to_json(settings), "found": about}, indent=2)
        write_file(file, f"{text}\n".encode())
        plots = draw_plots(study, folder)
    compared = f"; the configured settings (trial 0): {configured:.4f}" if configured is not None else ""
    print(
        f"{summary}; best: trial {best.number} with dev accuracy {best.value:.4f}{compared}\n"
        f"settings: {file}\ntable:    {folder / 'trials.csv'}\nplots:    {', '.join(map(str, plots))}"
    )


def draw_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw the history of the study, the importance of each parameter, and parallel coordinates of all trials.

    Returns:
        The files; without the importance if no two trials differ.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    files = []
    for name, function in PLOTS.items():
        if name == "importance" and len(values) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about experimental functions, and parameters that all trials share
            axes = getattr(plots, function)(study, target_name="dev accuracy")
        wide = name == "parallel_coordinates"
        for part in axes.figure.axes if wide else ():
            part.grid(False)  # each axis would draw its own
        axes.figure.set_size_inches(14 if wide else 8, 5)
        with atomic_file(folder / f"{name}.png") as temporary:
            axes.figure.savefig(temporary, dpi=120, bbox_inches="tight")
        pyplot.close(axes.figure)
        files.append(folder / f"{name}.png")
    return files
