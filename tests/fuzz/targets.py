"""The targets of fuzzing: each makes a case from a seeded generator and valid inputs."""

from __future__ import annotations

from tests.fuzz.bundle_targets import (
    fuzz_manifest,
    fuzz_npz,
    fuzz_onnx,
    fuzz_pickle,
    fuzz_profile,
    fuzz_recipe,
    fuzz_safetensors,
)
from tests.fuzz.cases import Target
from tests.fuzz.cue_targets import fuzz_cue_file, fuzz_models, fuzz_prompt, fuzz_server
from tests.fuzz.dataset_targets import fuzz_dataset
from tests.fuzz.media_targets import fuzz_address, fuzz_http, fuzz_media, fuzz_recording, fuzz_sound, fuzz_stream
from tests.fuzz.usage_targets import fuzz_data, fuzz_environment, fuzz_masks, fuzz_options, fuzz_output

#: Name → the function that makes a case.
TARGETS: dict[str, Target] = {
    function.__name__.removeprefix("fuzz_"): function
    for function in (
        fuzz_media, fuzz_recording, fuzz_sound, fuzz_stream, fuzz_http, fuzz_address, fuzz_manifest, fuzz_npz,
        fuzz_onnx, fuzz_safetensors, fuzz_pickle, fuzz_recipe, fuzz_profile, fuzz_cue_file, fuzz_server, fuzz_prompt,
        fuzz_models, fuzz_masks, fuzz_options, fuzz_output, fuzz_data, fuzz_dataset,
        fuzz_environment,
    )
}  # fmt: skip
