"""Rendered manifests: how they are made, their schemas, and who reaches whom."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.server import ROOT

MANIFESTS = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.29", "1.34")  # built-in kinds are held against the schemas of both

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed; apt-get install kubernetes-client"
)

Resource = dict[str, Any]


class Rendered:
    """What a kustomization comes to."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.all = list(resources)

    def __call__(self, kind: str, name: str) -> Resource:
        """The one resource of a kind and a name."""
        found = [one for one in self.all if one["kind"] == kind and one["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} {kind} {name}"
        return found[0]

    def of(self, kind: str) -> list[Resource]:
        return [one for one in self.all if one["kind"] == kind]

    def pods(self) -> dict[str, Resource]:
        """The pods' specs, by kind and name of what makes them."""
        return {
            f"{one['kind']} {one['metadata']['name']}": one["spec"]["template"]["spec"]
            for one in self.all
            if "template" in one.get("spec", {})
        } | {f"InferenceService {one['metadata']['name']}": one["spec"]["predictor"] for one in self.of(SERVING)}


SERVING = "InferenceService"


def render(folder: Path) -> Rendered:
    """`kubectl kustomize FOLDER`."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Rendered(yaml.safe_load_all(done.stdout))


def combined(folder: Path, overlay: str, components: Sequence[str]) -> Rendered:
    """An overlay with components, as a user's own kustomization in that folder."""
    there = os.path.relpath(MANIFESTS, folder)
    own = {
        "resources": [f"{there}/overlays/{overlay}"],
        "components": [f"{there}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    return render(folder)


# Schemas of kinds that a cluster gets from operators: the fields that are used here and no others, in our own words
# after the operators' API references (prometheus-operator v1, KEDA v1alpha1, KServe v1beta1).


def _fields(*required: str, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": fields, "additionalProperties": False}


def _many(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_ANY = {"type": "object"}
_DURATION = {"type": "string", "pattern": r"^\d+(s|m|h|d)$"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_RULE = _fields(
    "expr",
    alert=_TEXT,
    record={"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"},
    expr=_TEXT,
    labels=_TEXTS,
    annotations=_TEXTS,
    **{"for": _DURATION},
)
_ENDPOINT = _fields(
    "port",
    port=_TEXT,
    path=_TEXT,
    interval=_DURATION,
    authorization=_fields("credentials", credentials=_fields("name", "key", name=_TEXT, key=_TEXT)),
    relabelings=_many(_fields("targetLabel", "replacement", action=_TEXT, targetLabel=_TEXT, replacement=_TEXT)),
)
_TRIGGER = _fields(
    "type",
    "metadata",
    type={"enum": ["prometheus", "cpu"]},
    metricType={"enum": ["AverageValue", "Value", "Utilization"]},
    metadata=_TEXTS,  # numbers, too, are text
)
_SPECS = {
    "monitoring.coreos.com/v1 PrometheusRule": _fields(
        "groups", groups=_many(_fields("name", "rules", name=_TEXT, interval=_DURATION, rules=_many(_RULE)))
    ),
    "monitoring.coreos.com/v1 ServiceMonitor": _fields(
        "selector", "endpoints", selector=_fields("matchLabels", matchLabels=_TEXTS), endpoints=_many(_ENDPOINT)
    ),
    "keda.sh/v1alpha1 ScaledObject": _fields(
        "scaleTargetRef",
        "triggers",
        scaleTargetRef=_fields("name", name=_TEXT),
        minReplicaCount=_COUNT,
        maxReplicaCount=_COUNT,
        cooldownPeriod=_COUNT,
        fallback=_fields("failureThreshold", "replicas", failureThreshold=_COUNT, replicas=_COUNT),
        advanced=_fields(horizontalPodAutoscalerConfig=_fields(behavior=_ANY)),
        triggers=_many(_TRIGGER),
    ),
    "serving.kserve.io/v1beta1 InferenceService": _fields("predictor", predictor=_ANY),
}
_OF_KSERVE = frozenset(("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"))


def check(rendered: Rendered) -> None:
    """Hold every resource against its schema; a predictor, which is a pod with four fields more, as a pod too."""
    for one in rendered.all:
        what = f"{one['apiVersion']} {one['kind']}"
        if what not in _SPECS:
            for version in VERSIONS:
                kubernetes_validate.validate(one, version, strict=True)
            continue
        assert set(one) == {"apiVersion", "kind", "metadata", "spec"}, what
        jsonschema.validate(one["spec"], _SPECS[what])
        if one["kind"] == SERVING:
            pod = {name: each for name, each in one["spec"]["predictor"].items() if name not in _OF_KSERVE}
            stand_in = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod}
            kubernetes_validate.validate(stand_in, VERSIONS[-1], strict=True)


# Who reaches whom.


def reaches(rendered: Rendered, source: dict[str, str], target: str, port: str, namespace: str = "fovea") -> bool:
    """Whether policies let a pod with these labels, of that namespace, connect to a named port of a component."""
    policies = [
        policy["spec"]
        for policy in rendered.of("NetworkPolicy")
        if "Ingress" in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], {"app.kubernetes.io/component": target})
    ]
    return not policies or any(
        port in {each["port"] for each in rule.get("ports", [{"port": port}])}
        and ("from" not in rule or any(_is_from(peer, source, namespace) for peer in rule["from"]))
        for policy in policies
        for rule in policy.get("ingress", ())
    )


def _selects(selector: Resource, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def _is_from(peer: Resource, labels: dict[str, str], namespace: str) -> bool:
    if "namespaceSelector" in peer:
        there = _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        there = namespace == "fovea"
    return there and _selects(peer.get("podSelector", {}), labels)
