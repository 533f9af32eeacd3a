"""The files of deploy/ and the Procfile: what they start is there, and what they say fits together."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from sagastream_bridge.commands.main import cli
from sagastream_bridge.commands.variables import VARIABLES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
#: Succeeds while the health file is younger than a minute.
PROBE = 'test -n "$(find /tmp/healthy -mmin -1)"'
#: Variables of other programs that are set here.
OF_OTHERS = {
    "REDIS_URL",
    "RQ_URL",
    "PATH",
    "PYTHON",
    "PYTHONUNBUFFERED",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "PIP_NO_CACHE_DIR",
}


class Strict(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML tells no types
    """Refuses a key that is there twice, of which Kubernetes would take one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len({*keys}), f"a key is there twice: {keys}{node.start_mark}"
        return super().construct_mapping(node, deep)


def objects() -> list[dict[str, Any]]:
    """All that the manifests hold."""
    return [one for path in MANIFESTS for one in yaml.load_all(path.read_text(), Strict)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in objects() if one["kind"] == kind]


def unit(path: Path) -> dict[str, list[str]]:
    """The settings of a unit, each with all its values."""
    settings: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def parsed(words: list[str]) -> dict[str, Any]:
    """What `sagastream WORDS` takes them for; fails as it would."""
    name, *arguments = words
    command: click.Command = cli.commands[name]
    return command.make_context(name, arguments).params


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """What is started, without `sagastream`, and by which file."""
    for path in UNITS:
        (line,) = unit(path)["ExecStart"]
        program, *words = shlex.split(line.replace("%i", "shop.payment:service"))
        assert program == "/opt/sagastream/bin/sagastream"
        yield path.name, words
    for one in of_kind("Deployment"):
        for container in one["spec"]["template"]["spec"]["containers"]:
            assert "command" not in container  # the image says which program it is
            yield f"Deployment {one['metadata']['name']}", container["args"]
    (program,) = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[0])
    assert program == "sagastream"
    yield "Dockerfile", json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[0])
    for line in (ROOT / "Procfile").read_text().splitlines():
        if found := re.search(r"\bexec sagastream (.+)$", line):
            yield f"Procfile, {line}", shlex.split(found[1])


@pytest.mark.parametrize(("file", "words"), [pytest.param(*one, id=one[0]) for one in command_lines()])
def test_what_is_started_is_there_and_takes_what_it_is_told(file: str, words: list[str]) -> None:
    assert parsed(words)


def test_something_is_started_in_each_way() -> None:
    started = [(file.partition(" ")[0].partition(",")[0], words[0]) for file, words in command_lines()]
    for way in ("sagastream-worker@.service", "Deployment", "Dockerfile", "Procfile"):
        assert (way, "worker") in started
    for way in ("sagastream-service@.service", "Deployment", "Procfile"):
        assert (way, "service") in started
    for name in ("dashboard", "metrics"):
        assert (f"sagastream-{name}.service", name) in started
        assert ("Deployment", name) in started


def test_every_variable_is_one_that_somebody_reads() -> None:
    texts = {path: path.read_text() for path in [*DEPLOY.rglob("*"), ROOT / "Procfile"] if path.is_file()}
    for path, text in texts.items():
        named = set(re.findall(r"\bSAGASTREAM_\w+", text))
        named |= {name for name in re.findall(r"\b([A-Z][A-Z_]{3,})=", text) if name not in OF_OTHERS}
        assert named <= set(VARIABLES), path


def test_the_programs_are_given_longer_to_end_than_they_take() -> None:
    for path in UNITS:
        (line,) = unit(path)["ExecStart"]
        grace_s = parsed(shlex.split(line.replace("%i", "a:b"))[1:]).get("grace_s", 0)
        assert int(unit(path)["TimeoutStopSec"][0]) >= grace_s + 10, path.name
    for one in of_kind("Deployment"):
        pod = one["spec"]["template"]["spec"]
        for container in pod["containers"]:
            assert pod["terminationGracePeriodSeconds"] >= parsed(container["args"]).get("grace_s", 0) + 10


def test_probes_look_at_the_file_that_the_program_touches() -> None:
    (docker,) = re.findall(r"^HEALTHCHECK .*?CMD (.+)$", DOCKERFILE, re.MULTILINE)
    found = [(docker, json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[0]))]
    for one in of_kind("Deployment"):
        for container in one["spec"]["template"]["spec"]["containers"]:
            for probe in ("livenessProbe", "readinessProbe"):
                if "health_file" not in parsed(container["args"]):
                    # What has no health file listens.
                    assert container[probe]["tcpSocket"]["port"] in {port["name"] for port in container["ports"]}
                    continue
                shell, option, line = container[probe]["exec"]["command"]
                assert (shell, option) == ("sh", "-c")
                found.append((line, container["args"]))
    for line, words in found:
        assert line == PROBE
        assert str(parsed(words)["health_file"]) == "/tmp/healthy"


def test_selectors_find_the_pods_of_their_deployment() -> None:
    deployments = {one["metadata"]["name"]: one["spec"] for one in of_kind("Deployment")}
    for name, spec in deployments.items():
        labels = spec["template"]["metadata"]["labels"]
        wanted = [
            spec["selector"],
            *(one["labelSelector"] for one in spec["template"]["spec"].get("topologySpreadConstraints", ())),
        ]
        wanted += [one["spec"]["selector"] for one in of_kind("PodDisruptionBudget") if one["metadata"]["name"] == name]
        assert len(wanted) == (3 if spec["replicas"] > 1 else 1), name
        (of_all, of_dashboard) = (one["spec"]["podSelector"] for one in of_kind("NetworkPolicy"))
        wanted += [of_all, *([of_dashboard] if name == "dashboard" else [])]
        assert all(one["matchLabels"].items() <= labels.items() for one in wanted), name
    (service,) = of_kind("Service")
    assert service["spec"]["selector"].items() <= deployments["dashboard"]["template"]["metadata"]["labels"].items()


def test_prometheus_reaches_the_metrics_of_every_pod_but_the_dashboard() -> None:
    (policy, pages) = of_kind("NetworkPolicy")
    (scraped,) = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    for one in of_kind("Deployment"):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        (port,) = container["ports"]
        told = parsed(container["args"])
        assert told.get("metrics_host", told.get("host")) == "0.0.0.0", "others than the pod itself could not reach it"
        assert told.get("metrics_port", told.get("port")) == port["containerPort"]
        if port["name"] == "pages":
            assert pages["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
        else:
            assert (port["name"], port["containerPort"]) == ("metrics", scraped)


def test_the_image_has_what_its_commands_need() -> None:
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / ".ci" / "deploy.txt").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("crypto", "dashboard", "metrics", "otel"):
        assert {re.split(r"[<>=]", one)[0] for one in extras[extra]} <= pinned
    assert {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"} <= pinned


def test_pods_have_no_rights_that_they_do_not_need() -> None:
    for one in of_kind("Deployment"):
        pod = one["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert re.findall(r"^USER (\d+):", DOCKERFILE, re.MULTILINE) == [str(pod["securityContext"]["runAsUser"])]
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_what_the_manifests_name_is_there() -> None:
    (secret, _) = secrets = of_kind("Secret")
    (listed,) = of_kind("Kustomization")
    assert {path.name for path in MANIFESTS} - {*listed["resources"]} == {"kustomization.yaml", "secret.example.yaml"}
    assert {one["metadata"]["namespace"] for one in secrets} == {listed["namespace"]}
    images = {one["name"] for one in listed["images"]}
    for one in of_kind("Deployment"):
        for container in one["spec"]["template"]["spec"]["containers"]:
            assert container["image"] in images
            named = [one["secretRef"]["name"] for one in container["envFrom"]]
            assert named[0] == secret["metadata"]["name"]
            assert set(named) <= {one["metadata"]["name"] for one in secrets}


def test_what_the_image_is_made_from_is_there_and_not_left_out() -> None:
    rules = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert rules[0] == "*"
    taken = [rule[1:] for rule in rules if rule.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, rule) for rule in taken), source
    for line in re.findall(r"pip install .*", DOCKERFILE):
        assert "--require-hashes --only-binary :all:" in line or "--no-deps --no-index" in line


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on the path")
    for path in UNITS:
        # It wants the program to be there.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/sagastream/bin/sagastream", "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", "verify", tmp_path / path.name], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), path.name
