"""What `import sagastream` offers."""

import subprocess
import sys

import sagastream


def test_the_package_lists_its_public_names_and_has_all_of_them() -> None:
    assert dir(sagastream) == sorted(sagastream.__all__)
    assert all(hasattr(sagastream, name) for name in dir(sagastream))


def test_the_names_are_listed_before_any_was_used() -> None:
    code = "import sagastream, sys; print('SagaClient' in dir(sagastream), 'redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
