"""The network, its loss, its gradients and the update rules in plain NumPy float64.

Written from the formulas. It imports nothing of the package, so that the two can disagree.
Parameters are {"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}, in the order of the layers.
"""

from typing import Any

import numpy as np

Tree = dict[str, dict[str, np.ndarray]]


def forward(params: Tree, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The logits, and the input of each layer."""
    inputs = [images.astype(np.float64)]
    *hidden, last = params.values()
    for layer in hidden:
        inputs.append(np.maximum(inputs[-1] @ layer["kernel"] + layer["bias"], 0))
    return inputs[-1] @ last["kernel"] + last["bias"], inputs


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-sum over classes of one_hot * log softmax, for each example."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -(np.eye(logits.shape[-1])[labels] * log_softmax).sum(axis=-1)


def loss(params: Tree, images: np.ndarray, labels: np.ndarray) -> float:
    return cross_entropy(forward(params, images)[0], labels).mean().item()


def gradients(params: Tree, images: np.ndarray, labels: np.ndarray) -> Tree:
    """The gradients of the mean loss: from (softmax - one_hot) / n back through each layer."""
    logits, inputs = forward(params, images)
    delta = (softmax(logits) - np.eye(logits.shape[-1])[labels]) / len(labels)
    grads = {}
    for name, x in reversed(list(zip(params, inputs, strict=True))):
        grads[name] = {"kernel": x.T @ delta, "bias": delta.sum(axis=0)}
        delta = delta @ params[name]["kernel"].T * (x > 0)
    return {name: grads[name] for name in params}


# The update rules: parameter `p`, gradient `g` and memory `s` (arrays) -> the new parameter.


def rmsprop(
    p: Any, g: Any, s: dict[str, Any], lr: float, decay: float = 0.9, eps: float = 1e-7,
    eps_in_sqrt: bool = False, momentum: float = 0.0,
) -> Any:  # fmt: skip
    s["v"] = decay * s.get("v", 0.0) + (1 - decay) * g**2
    root = np.sqrt(s["v"] + eps) if eps_in_sqrt else np.sqrt(s["v"]) + eps
    s["m"] = momentum * s.get("m", 0.0) + lr * g / root
    return p - s["m"]


def sgd(p: Any, g: Any, s: dict[str, Any], lr: float, momentum: float = 0.0) -> Any:
    s["m"] = momentum * s.get("m", 0.0) + g
    return p - lr * s["m"]


def adam(
    p: Any, g: Any, s: dict[str, Any], lr: float, b1: float = 0.9, b2: float = 0.999,
    eps: float = 1e-7, weight_decay: float = 0.0,
) -> Any:  # fmt: skip
    """Kingma & Ba (2015), algorithm 1; with weight_decay, AdamW (Loshchilov & Hutter, 2019)."""
    s["t"] = s.get("t", 0) + 1
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
    m, v = s["m"] / (1 - b1 ** s["t"]), s["v"] / (1 - b2 ** s["t"])
    return p - lr * (m / (np.sqrt(v) + eps) + weight_decay * p)


def train(params: Tree, images: np.ndarray, labels: np.ndarray, order: np.ndarray) -> list[float]:
    """The mean loss of each batch before its update by rmsprop, with the lesson's settings."""
    memory = {name: {leaf: {} for leaf in layer} for name, layer in params.items()}
    params = {name: {k: v.astype(np.float64) for k, v in p.items()} for name, p in params.items()}
    losses = []
    for padded in order:
        rows = padded[padded >= 0]
        losses.append(loss(params, images[rows], labels[rows]))
        for name, layer in gradients(params, images[rows], labels[rows]).items():
            for leaf, grad in layer.items():
                p, slot = params[name][leaf], memory[name][leaf]
                params[name][leaf] = rmsprop(p, grad, slot, lr=1e-3)
    return losses
