"""The table of verbs against their modules."""

import pytest

from medusa_trt.cli.verb_table import HELP, verb_from_name

GROUPS = {name.split()[0] for name in HELP if " " in name}


@pytest.mark.parametrize("name", sorted(HELP.keys() - GROUPS))
def test_every_listed_verb_exists(name: str) -> None:
    verb = verb_from_name(name)
    assert verb.make_parser(name).prog == name


def test_groups_are_no_verbs() -> None:
    for name in GROUPS:
        with pytest.raises(KeyError):
            verb_from_name(name)
