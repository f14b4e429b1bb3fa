"""Plans as text: one in full, several as a Markdown table."""

from rvllm_jax.planning import memory, rates
from rvllm_jax.planning.plan import Plan

GB = 1e9


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def describe(plan: Plan, pairs: int) -> str:
    """One plan in full: memory, operations, links, speed."""
    parts = [
        _title(plan),
        *_memory(plan),
        "",
        *_work(plan),
        "",
        *_speed(plan, pairs),
        _scaling(plan),
    ]
    if plan.advice:
        parts += ["", plan.advice]
    return "\n".join(parts)


def _title(plan: Plan) -> str:
    sizes = " x ".join(f"{name}={size}" for name, size in plan.mesh.items())
    return (
        f"## {plan.recipe.name}, stage {plan.stage.name}, on {plan.topology.name}\n"
        f"{plan.recipe.model.encoder} + {plan.recipe.model.decoder}, {plan.recipe.data.frames} "
        f"frames x {plan.recipe.data.crop} pixels, sequences of {plan.recipe.data.context} tokens, "
        f"batch {plan.stage.batch} over {plan.topology.chips} {plan.topology.kind} ({sizes})\n"
    )


def _memory(plan: Plan) -> list[str]:
    lines = ["| Each device | GB |", "|---|---|"]
    names = {"batchnorm": "BatchNorm statistics"}
    for name, size in vars(plan.memory).items():
        label = names.get(name, name)
        lines.append(_row(label[0].upper() + label[1:], f"{size / GB:.3f}"))
    lines.append(_row("Peak, by formula", f"{plan.memory.peak / GB:.2f}"))
    if plan.compiled and plan.compiled.fits:
        lines.append(_row("State and input, by the compiler", f"{plan.compiled.state / GB:.2f}"))
        lines.append(_row("Temporary, by the compiler", f"{plan.compiled.temporary / GB:.2f}"))
    if plan.compiled:
        ratio = plan.memory.peak / plan.compiled.peak
        lines.append(_row("Peak, by the compiler", f"{plan.compiled.peak / GB:.2f}"))
        lines.append(_row("Formula / compiler", f"{ratio:.2f}"))
    lines.append(_row(f"A {plan.topology.kind} has", f"{plan.topology.chip.usable / GB:.2f}"))
    if plan.compiled and plan.compiled.effort == "least":
        lines += ["", "Compiled with the least effort: the program of training should need less."]
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines += ["", f"It {verdict}. Largest batch that fits, by formula: {plan.largest_batch} clips."]
    if plan.fits and plan.peak > plan.topology.chip.usable:
        lines.append("Its parts are more than that, but not at once: the compiler has placed them.")
    lines += plan.notes
    if not plan.topology.is_tpu and plan.peak > 0.75 * plan.topology.chip.memory:
        lines.append("JAX takes 75 % of a GPU by default: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95.")
    return lines


def _work(plan: Plan) -> list[str]:
    lines = ["| TFLOP a clip | of the model | with recomputation |", "|---|---|---|"]
    for name, (once, executed) in plan.work.items():
        lines.append(_row(name, f"{once / 1e12:.4g}", f"{executed / 1e12:.4g}"))
    once, executed = (sum(x[i] for x in plan.work.values()) for i in (0, 1))
    lines.append(_row("all", f"{once / 1e12:.4g}", f"{executed / 1e12:.4g}"))
    return lines


def _speed(plan: Plan, pairs: int) -> list[str]:
    chip, made = plan.topology.chip, plan.speed
    # Hosts that the mesh's `tensor` axis joins read the same clips.
    hosts = min(plan.topology.hosts, plan.mesh["data"] * plan.mesh["fsdp"])
    clips = made.clips_a_second / hosts
    size = memory.clip_bytes(plan.recipe, plan.stage)
    duration = rates.hours(made, plan.stage, pairs, plan.recipe.data.questions)
    lines = [
        f"Links: each device receives {made.link_bytes / GB:.4g} GB a step by formula"
        + (f", {sum(plan.compiled.received.values()) / GB:.4g} GB in the compiled program"
           if plan.compiled and plan.compiled.fits and plan.compiled.effort == "full" else "")
        + ".",
        f"Predicted: {made.clips_a_second:.2f} clips/s, {made.seconds:.4g} s a step "
        f"(arithmetic {made.arithmetic:.4g} s, links {made.transfer:.4g} s), at "
        f"{plan.efficiency:.0%} of {chip.flops / 1e12:.0f} TFLOP/s, {rates.STREAMING:.0%} of "
        f"{chip.bandwidth / GB:.0f} GB/s in the encoder and {rates.LINKS:.0%} of "
        f"{plan.topology.link / GB:.0f} GB/s between chips; not measured.",
        f"Input: each of {plan.topology.hosts} hosts "
        + (f"decodes {clips:.2f} clips/s, {clips * plan.recipe.data.frames:.0f} frames/s,"
           if plan.stage.input == "video" else f"reads {clips:.2f} sequences of text a second")
        + f" and hands its devices {clips * size / 1e6:.1f} MB/s.",
        f"Time: {duration:.3g} hours"
        + (f" for {plan.stage.epochs} epochs of {pairs:,} pairs, up to "
           f"{plan.recipe.data.questions} behind one video."
           if plan.stage.epochs else f" for {plan.stage.steps} steps."),
    ]  # fmt: skip
    return lines


def table(plans: list[Plan]) -> str:
    """One row a plan."""
    lines = [
        _row(
            *("Decoder", "Stage", "Topology", "Mesh", "Clips", "State", "Activations", "Peak"),
            *("Has", "Fits", "By", "Formula / compiler", "Clips/s", "Largest batch"),
        ),
        "|" + "---|" * 14,
    ]
    for plan in plans:
        need, mesh = plan.memory, "x".join(map(str, plan.mesh.values()))
        ratio = f"{need.peak / plan.compiled.peak:.2f}" if plan.compiled else ""
        lines.append(
            _row(
                plan.recipe.model.decoder,
                plan.stage.name,
                plan.topology.name,
                mesh,
                plan.stage.batch,
                f"{(need.parameters + need.gradients + need.optimizer + need.batchnorm) / GB:.2f}",
                f"{need.activations / GB:.2f}",
                f"{plan.peak / GB:.2f}",
                f"{plan.topology.chip.usable / GB:.1f}",
                "yes" if plan.fits else "no",
                "compiler" if plan.compiled else "formula",
                ratio,
                f"{plan.speed.clips_a_second:.1f}",
                plan.largest_batch,
            )
        )
    return "\n".join([*lines, "", "GB a device. State holds the gradients. Clips/s are predicted."])


def _scaling(plan: Plan) -> str:
    cells = []
    for count, made in plan.scaling.items():
        narrow = "links" if made.transfer > made.arithmetic else "arithmetic"
        cells.append(f"{count}: {made.clips_a_second:.1f} ({narrow})")
    return f"Clips/s by {plan.topology.kind} chips, all over fsdp x tensor: {', '.join(cells)}."


def show(plans: list[Plan], pairs: int) -> str:
    """In full where they are of one topology, else as a table with its advice below."""
    if len({plan.topology.name for plan in plans}) == 1:
        return "\n\n".join(describe(plan, pairs) for plan in plans)
    advice = [f"{plan.topology.name}: {plan.advice}" for plan in plans if plan.advice]
    return "\n".join([table(plans), *advice])
