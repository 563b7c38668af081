"""Commands that look at recipes and run nothing: `plan`, `check`, `config`, `list`, `schema`, `init`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from lightningrun.cli import options
from lightningrun.errors import ExitCode, LightningError, Missing, UsageError
from lightningrun.tracking.formats import merged, plural, usd

if TYPE_CHECKING:
    from lightningrun.runner import Plan, StagePlan

PROVIDERS = {
    "openai": "any OpenAI-compatible endpoint: set base_url and api_key_env",
    "litellm": "any LiteLLM name: anthropic/..., gemini/..., ollama/...",
    "python": "a chat model written as a function, module:callable",
}
TEMPLATES = {
    "blank": "a tiny task that runs at once, offline, to edit into your own",
    "sql_agent": "the SQL agent over cricket.db: a base prompt that fails on aggregations, repaired by apo",
}
_ACTION_COLORS = {"run": "cyan", "cached": "green", "skipped": None, "undecided": "yellow"}


@click.command("plan", cls=options.OptionalForce, short_help="Say what would run, and why; forecast calls and cost.")
@options.recipe_argument
@options.selection_options
@click.option("--exit-code", is_flag=True, help="Exit 10 when work is pending.")
@options.runs_dir_option
@options.json_option("The plan as JSON.")
def plan(
    recipe: str, overrides: tuple[str, ...], exit_code: bool, runs_dir: str, as_json: bool, **selection: Any
) -> int:
    """Say what running RECIPE would run, reuse or skip, and why, with the calls and dollars it may take."""
    planned = options.open_recipe(recipe, overrides, runs_dir).plan(**selection)
    show_plan(planned, as_json=as_json)
    return ExitCode.WORK_PENDING if exit_code and planned.pending else ExitCode.OK


def show_plan(planned: Plan, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(planned.to_json(), indent=1, ensure_ascii=False))
        return ExitCode.OK
    click.echo(f"{click.style(planned.name, bold=True)}  recipe {planned.recipe_digest[:12]}  seed {planned.seed}")
    for note in merged(planned.notes):
        click.secho(f"note: {note}", fg="yellow", bold=True)
    click.echo()
    width = max(len(stage.id) for stage in planned.stages)
    for stage in planned.stages:
        _show_stage(stage, width)
    _show_totals(planned)
    for warning in merged(planned.warnings):
        click.secho(f"warning: {warning}", fg="yellow")
    return ExitCode.OK


def _show_stage(stage: StagePlan, width: int) -> None:
    action = stage.action.value
    label = click.style(f"{action:<9}", fg=_ACTION_COLORS[action], bold=action == "run")
    click.echo(f"{stage.ordinal:>2} {click.style(f'{stage.id:<{width}}', bold=True)}  {label}  {stage.reason}")
    if action == "skipped":
        return
    indent = " " * (width + 5)
    named = [
        f"{name} from {source} ({source.origin})" if source.stage else f"{name} from the recipe"
        for name, source in stage.inputs.items()
    ]
    click.echo(f"{indent}{stage.type}, key {stage.key[:12]}{', ' if named else ''}{', '.join(named)}")
    if action != "cached":
        click.echo(f"{indent}{_forecast(stage)}")


def _forecast(stage: StagePlan) -> str:
    calls = " + ".join(f"{amount:,} {role}" for role, amount in stage.forecast.calls.items() if amount)
    cost = usd(stage.cost_usd) if stage.cost_usd is not None else "price unknown"
    return f"at most {plural(stage.forecast.rollouts, 'rollout')}, {calls or 'no'} calls, {cost}"


def _show_totals(planned: Plan) -> None:
    todo = [stage for stage in planned.stages if stage.action.value in ("run", "undecided")]
    if not todo:
        click.echo("\nnothing to run: every stage is cached or skipped")
        return
    calls = sum(sum(stage.forecast.calls.values()) for stage in todo)
    costs = [stage.cost_usd for stage in todo]
    known = sum(cost for cost in costs if cost is not None)
    cost = usd(known) + (" and more (some prices are unknown)" if None in costs else "")
    rollouts = plural(sum(stage.forecast.rollouts for stage in todo), "rollout")
    most = f"{rollouts}, {plural(calls, 'LLM call')} (at one a rollout), {cost}"
    click.echo(f"\nto run: {plural(len(todo), 'stage')}; at most {most}")


@click.command("check", short_help="Validate recipes; run nothing.")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
def check(recipes: tuple[str, ...]) -> int:
    """Find everything in each RECIPE that would go wrong before the first paid call."""
    worst = ExitCode.OK
    for recipe in recipes:
        try:
            warnings = options.open_recipe(recipe, (), "runs").check()
        except LightningError as error:
            options.print_error(str(error))
            worst = error.exit_code if worst in (ExitCode.OK, Missing.exit_code) else worst
        else:
            click.echo(f"{recipe}: ok")
            for warning in warnings:
                click.secho(f"{recipe}: warning: {warning}", fg="yellow", err=True)
    return worst


@click.command("config", short_help="Print the resolved recipe, or why a key has its value.")
@options.recipe_argument
@click.option("--why", metavar="KEY", help="Which file, line or override set KEY, and what it replaced.")
def config(recipe: str, overrides: tuple[str, ...], why: str | None) -> None:
    """Print RECIPE with everything resolved: bases merged, overrides applied, interpolations done."""
    loaded = options.open_recipe(recipe, overrides, "runs").loaded
    if why is None:
        click.echo(loaded.to_yaml(), nl=False)
        return
    for line in loaded.why(why):
        click.echo(str(line))


@click.command("list", short_help="List recipes, stages, providers or templates.")
@click.argument("what", type=click.Choice(["recipes", "stages", "providers", "templates"]), default="recipes")
def list_(what: str) -> None:
    """List what there is: recipes (of this folder), stages, providers or templates."""
    if what == "recipes":
        rows = _recipes()
    elif what == "stages":
        from lightningrun import stages

        rows = {name: spec.summary for name, spec in stages.specs().items()}
    else:
        rows = PROVIDERS if what == "providers" else TEMPLATES
    if not rows:
        click.echo("no recipe in this folder or in recipes/; make one with `lightningrun init`", err=True)
    width = max(map(len, rows), default=0)
    for name, summary in rows.items():
        click.echo(f"{name:<{width}}  {summary}".rstrip())


def _recipes() -> dict[str, str]:
    import yaml

    rows = {}
    for path in sorted([*Path().glob("*.yaml"), *Path("recipes").glob("*.yaml")]):
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(content, dict) and ("stages" in content or "extends" in content):
            rows[str(path)] = str(content.get("description", ""))
    return rows


@click.command("init", short_help="Make a task folder and a recipe to edit.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".", metavar="[DIR]")
@click.option("--template", type=click.Choice(list(TEMPLATES)), default="blank", show_default=True)
def init(folder: Path, template: str) -> None:
    """Copy a template into DIR (default: here). Nothing that exists is overwritten."""
    import shutil

    source = Path(__file__).parent.parent / "templates" / template
    files = [path.relative_to(source) for path in _files_of(source)]
    taken = [str(folder / name) for name in files if (folder / name).exists()]
    if taken:
        raise UsageError(
            f"{', '.join(taken[:5])} exist{'s' if len(taken) == 1 else ''} already", hint="name a new folder"
        )
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
        click.echo(f"  {folder / name}")
    recipe = next(str(name) for name in files if name.parent.name == "recipes" and name.suffix == ".yaml")
    enter = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    click.echo(f"next: {enter}lightningrun {recipe}")


def _files_of(folder: Path) -> list[Path]:
    """Every file of a template, links followed, in a stable order."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__pycache__")):
            continue
        found += _files_of(path) if path.is_dir() else [path]
    return found


@click.command("schema", short_help="Print the JSON Schema of recipes, for editors.")
@options.output_option
def schema(output: IO[str]) -> None:
    """Print the JSON Schema of recipes, generated from the code that reads them."""
    from lightningrun import stages
    from lightningrun.recipe import json_schema

    output.write(json.dumps(json_schema(stages.specs()), indent=2, ensure_ascii=False) + "\n")


COMMANDS = (plan, check, config, list_, schema, init)
