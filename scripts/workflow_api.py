"""Turn a workflow as the ComfyUI interface saves it (nodes and links) into what POST /prompt takes (API format)."""

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
NOTES = {"Note", "MarkdownNote"}
VIRTUAL = {"Reroute", "PrimitiveNode"}
MUTED, BYPASSED = 2, 4


class WorkflowError(ValueError):
    """A workflow that cannot be turned into a graph; the message is one sentence for a person."""


def to_api(workflow, object_info):
    """Return the API-format graph of a saved workflow.

    Takes the workflow as parsed JSON and the host's `GET /object_info` (node type → schema). Returns
    {node id: {"class_type", "inputs", "_meta"}}. Muted nodes and notes are left out; bypassed nodes, reroutes and
    primitives are seen through, as the interface does. Raises WorkflowError for what is not a saved workflow and
    for a node type that object_info lacks.
    """
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise WorkflowError(
            "this is not a workflow as the interface saves it (it has no list of nodes): use Save, not Export (API)."
        )
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = dict(_link(link) for link in workflow.get("links", []))
    graph = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in NOTES | VIRTUAL or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            raise WorkflowError(
                f"node {node['id']} is a '{kind}', which this ComfyUI does not have: install the pack it belongs to."
            )
        inputs = _widget_values(node, object_info[kind])
        for socket in node.get("inputs", []):
            found, value = _source(socket.get("link"), nodes, links)
            if found:
                inputs[socket["name"]] = value
        title = node.get("title") or object_info[kind].get("display_name") or kind
        graph[str(node["id"])] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return graph


def _link(link):
    """Read a link, in either of the two forms the interface has used, as (id, (origin node, origin slot))."""
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])


def _widget_values(node, schema):
    """Return the values of a node's widgets by input name; a widget that has none saved takes the schema's default."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return {name: values.get(name, _default(spec)) for name, spec in _widgets(schema)}
    inputs, position = {}, 0
    for name, spec in _widgets(schema):
        inputs[name] = values[position] if position < len(values) else _default(spec)
        position += 1
        # The interface adds a "control after generate" widget behind a seed, and saves its value too.
        if _has_control(name, spec) and position < len(values) and values[position] in CONTROL_VALUES:
            position += 1
    return inputs


def _widgets(schema):
    """List the inputs shown as widgets, (name, spec), in the order the interface makes them."""
    for group in ("required", "optional"):
        specs = schema["input"].get(group, {})
        for name in schema.get("input_order", {}).get(group, specs):
            kind, options = _kind(specs[name]), _options(specs[name])
            if kind in WIDGET_TYPES and not options.get("forceInput"):
                yield name, specs[name]


def _kind(spec):
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def _options(spec):
    return spec[1] if len(spec) > 1 else {}


def _has_control(name, spec):
    seed = _kind(spec) == "INT" and name in ("seed", "noise_seed")
    return _options(spec).get("control_after_generate", seed)


def _default(spec):
    options = _options(spec)
    if "default" in options:
        return options["default"]
    if _kind(spec) == "COMBO":
        choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
        return choices[0] if choices else None
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[_kind(spec)]


def _source(link_id, nodes, links):
    """Find what feeds a link: (True, [node id, slot]), (True, a primitive's value), or (False, None) for nothing."""
    while link_id in links:
        origin, slot = links[link_id]
        node = nodes[origin]
        if node["type"] == "PrimitiveNode":
            return True, node["widgets_values"][0]
        if node.get("mode", 0) == MUTED:
            break
        if node["type"] == "Reroute":
            link_id = node["inputs"][0].get("link")
        elif node.get("mode", 0) == BYPASSED:
            link_id = _passed_through(node, slot)
        else:
            return True, [str(origin), slot]
    return False, None


def _passed_through(node, slot):
    """Find the link of the input that a bypassed node hands on: at the output's slot, or the first of its type."""
    kind, sockets = node["outputs"][slot]["type"], node.get("inputs", [])
    for socket in sockets[slot : slot + 1] + sockets:
        if socket["type"] == kind:
            return socket.get("link")
    return None
