"""What the tests of the published archive share: the files that git tracks, and the nodes that must come of them."""

import subprocess

import pytest

from host import ROOT

NODES = {
    *("VGTLoader", "VGTEncode", "VGTDecode", "VGTARSampler", "VGTFlowHeadSettings"),
    *("VGTRegion", "VGTPromptSchedule", "VGTLoadLoRA", "VGTTrainLoRA"),
}


def git_files(*options):
    """Files that git tracks and that these options of `git ls-files` choose."""
    command = ["git", "ls-files", "-z", *options]
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    return set(output.split("\0")[:-1])
