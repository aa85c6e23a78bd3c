"""What the tests of several lessons stand on; each module gets its own."""

import pytest

from bdcourse import data, victims


@pytest.fixture(scope="module")
def parts():
    """The drawn signs."""
    return data.splits("signs")


@pytest.fixture(scope="module")
def guest():
    """A small BadNets network on the harder signs, where a loss is left."""
    return victims.zoo("badnets-hard")


@pytest.fixture(scope="module")
def clean():
    """The defender's share of the harder signs."""
    return data.splits("signs-hard").clean
