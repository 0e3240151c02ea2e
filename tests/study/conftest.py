"""Shared by the study's tests."""

import sys

import pytest

from tests.study.small_study import write_dataset, write_environment


@pytest.fixture
def folder(tmp_path):
    """A folder with the small dataset."""
    write_dataset(tmp_path)
    return tmp_path


@pytest.fixture
def environment(folder, monkeypatch):
    """The same folder; commands that our steps start are small programs."""
    monkeypatch.setattr(sys, "executable", str(write_environment(folder)))
    return folder
