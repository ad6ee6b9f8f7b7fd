"""Runs in nnU-Net's environment: ``FOLDER DEVICE fit SECONDS SEED`` or ``FOLDER DEVICE predict``.

Imports nothing of this project. ``FOLDER/idle_s`` gets the CPU seconds that the imports took,
``FOLDER/steps`` the steps that were made in SECONDS.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def cpu_seconds() -> float:
    usages = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def fit(folder: Path, device: str, seconds: float, seed: int) -> None:
    import numpy as np
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer

    started(folder)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 nnU-Net draws from it

    # Under the name of its parent, so that nnU-Net finds how to build the network again.
    class nnUNetTrainer(Trainer):
        def run_training(self) -> None:
            self.on_train_start()
            self.network.train()
            began, spent, steps = cpu_seconds(), 0.0, 0
            while True:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * max(1 - spent, 0.0) ** 0.9
                self.train_step(next(self.dataloader_train))
                steps += 1
                spent = (cpu_seconds() - began) / seconds
                if spent >= 1:
                    break
            (folder / "steps").write_text(str(steps))
            self.on_train_end()

    planning.extract_fingerprints([1], num_processes=1)
    planning.plan_experiments([1])
    planning.preprocess([1], configurations=("2d",), num_processes=[1])
    # Augmentation in the process that trains, so that its time counts; planning would refuse 0.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 nnU-Net's own name
    place = folder / "preprocessed" / "Dataset001_slices"
    plans = {**load_json(str(place / "nnUNetPlans.json")), "continue_training": False}
    description = load_json(str(place / "dataset.json"))
    trainer = nnUNetTrainer(plans, "2d", "all", description, torch.device(device))
    trainer.run_training()


def predict(folder: Path, device: str) -> None:
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    started(folder)
    (trained,) = (folder / "results" / "Dataset001_slices").iterdir()
    predictor = nnUNetPredictor(
        device=torch.device(device),
        perform_everything_on_device=device != "cpu",
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(trained), ("all",))
    for path in sorted((folder / "images").glob("*.npy")):
        image = np.load(path).astype(np.float32)[None, None]
        mask = predictor.predict_single_npy_array(image, {"spacing": (999, 1, 1)})
        np.save(folder / "masks" / path.name, np.asarray(mask)[0].astype(np.uint8))


def started(folder: Path) -> None:
    (folder / "idle_s").write_text(str(cpu_seconds()))


def main(folder: str, device: str, command: str, *arguments: str) -> None:
    if command == "fit":
        seconds, seed = arguments
        fit(Path(folder), device, float(seconds), int(seed))
    else:
        predict(Path(folder), device)


if __name__ == "__main__":
    main(*sys.argv[1:])
