"""A service by MODULE:NAME, and the errors if there is none."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from sagastream import Service
from sagastream.errors import ServiceError
from sagastream.service.loading import import_module, load_service


def told(call: Any, *args: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        call(*args)
    return str(caught.value)


def test_a_service_is_loaded_by_module_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shop_payment")
    vars(module).update(service=Service("payment"), other="not one")
    monkeypatch.setitem(sys.modules, "shop_payment", module)
    assert load_service("shop_payment:service") is vars(module)["service"]
    assert told(load_service, "shop_payment:other") == (
        "other in shop_payment is not a sagastream.Service; it has shop_payment:service"
    )
    assert told(load_service, "shop_payment:nothing") == ("shop_payment has no nothing; it has shop_payment:service")


@pytest.mark.parametrize("where", ["", "payment", "payment:", ":service", ":"])
def test_what_is_no_module_and_name_is_told_with_an_example(where: str) -> None:
    assert told(load_service, where) == f"{where!r} is not MODULE:NAME, like shop.payment:service"


def test_a_module_that_is_not_found_is_told_with_what_to_do() -> None:
    text = told(load_service, "no_such_module_anywhere:service")
    assert text.startswith("cannot import no_such_module_anywhere: ")
    assert text.endswith("; run it where the module is found")


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("depot.py:service", "depot:service"),
        ("./shop/depot.py:service", "shop.depot:service"),
        ("/srv/shop/depot.py:service", "depot:service"),
        ("../depot.py:service", "depot:service"),
    ],
)
def test_a_file_in_the_place_of_a_module_is_told_what_to_write(where: str, meant: str) -> None:
    assert told(load_service, where).endswith(f" is a file, not a module: write {meant}")


@pytest.mark.parametrize("name", ["shop_inner", "shop_package.depot"])
def test_a_module_that_imports_what_is_not_there_is_told_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / name.split(".", maxsplit=1)[0] / "__init__.py" if "." in name else tmp_path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("import json\nimport depotx\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert told(load_service, f"{name}:service") == (
        f"cannot import {name}: ModuleNotFoundError: No module named 'depotx' (raised in {file}, line 2)"
    )


def test_a_module_that_is_not_in_its_package_is_told_as_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_empty").mkdir()
    (tmp_path / "shop_empty" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    text = told(load_service, "shop_empty.depot:service")
    assert (
        text == "cannot import shop_empty.depot: No module named 'shop_empty.depot'; run it where the module is found"
    )


def test_a_module_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_binary.py").write_bytes(b"\0")
    monkeypatch.syspath_prepend(tmp_path)
    text = told(load_service, "shop_binary:service")
    assert text.startswith("cannot import shop_binary: SyntaxError: source code ")
    assert "null bytes" in text
    assert told(load_service, ".shop:service").startswith("cannot import .shop: TypeError: ")


def test_a_syntax_error_is_told_with_its_place_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_syntax.py").write_text("\ndef\n")
    (tmp_path / "shop_outer.py").write_text("import shop_syntax\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("shop_syntax", "shop_outer"):
        assert told(load_service, f"{name}:service") == (
            f"cannot import {name}: SyntaxError: invalid syntax ({tmp_path / 'shop_syntax.py'}, line 2)"
        )


def test_a_module_that_raises_is_told_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_broken.py").write_text("\nraise KeyError('no configuration')\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = told(load_service, "shop_broken:service")
    assert text.startswith("cannot import shop_broken: KeyError: 'no configuration' (raised in ")
    assert text.endswith("shop_broken.py, line 2)")


def test_a_wrong_declaration_is_told_with_the_line_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_lease.py").write_text("from sagastream import Service\nservice = Service('shop', lease_ms=0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = told(load_service, "shop_lease:service")
    assert text.startswith("cannot import shop_lease: ServiceError: service shop: lease_ms cannot be 0; ")
    assert text.endswith(f" (raised in {tmp_path / 'shop_lease.py'}, line 2)")


def test_so_is_a_wrong_step_of_a_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shop_sagas.py"
    file.write_text(
        "from sagastream import Definition\norder = Definition('o', version=1)\norder.step('A', service='')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = told(import_module, "shop_sagas")
    assert text.startswith("cannot import shop_sagas: MalformedMessage: step 1: service must be 1 to 128 characters")
    assert text.endswith(f" (raised in {file}, line 3)")


def test_a_module_that_exits_when_it_is_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_exits.py").write_text("raise SystemExit('no configuration')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert told(load_service, "shop_exits:service").startswith("cannot import shop_exits: SystemExit: no configuration")
