"""Wrong input to every command: one line that names it, status 2, and at once."""

import shlex
import time
from pathlib import Path

import pytest

import bench.__main__
import hlb.cli
from hlb.runs import ledger
from kernels.base import launch

PROGRAMS = {"hlb": hlb.cli.main, "bench": bench.__main__.main}
HUGE = "9" * 30
# Tests run kernels in Triton's interpreter, except on a GPU, where --device cpu has none.
INTERPRETER = " min in Triton's interpreter" if launch.INTERPRETED else "--kernels triton"
# A command, and what its line has to name. There: folder/, text.txt, arms.json, runs.jsonl, empty.jsonl.
INPUTS = (
    ("hlb --nonsense", "--nonsense"),
    ("hlb nonsense", "nonsense"),
    ("hlb train extra", "extra"),
    ("hlb --runs", "--runs"),
    ("hlb --runs many", "--runs"),
    ("hlb --runs 0", "--runs"),
    ("hlb --runs -1", "--runs"),
    ("hlb --runs 1.5", "--runs"),
    (f"hlb --runs {HUGE}", "--runs"),
    ("hlb --seed -1", "--seed"),
    ("hlb --seed x", "--seed"),
    (f"hlb --seed {HUGE}", "--seed"),
    ("hlb --eval-every -1", "--eval-every"),
    ("hlb --eval-every often", "--eval-every"),
    ("hlb --epochs 0", "epochs"),
    ("hlb --epochs nan", "epochs"),
    ("hlb --epochs many", "epochs"),
    ("hlb --threads -1", "--threads"),
    ("hlb --threads 100000", "the cores"),
    ("hlb --threads two", "--threads"),
    ("hlb --recipe nothing", "nothing"),
    ("hlb --recipe record49", "did you mean record9"),
    ("hlb --set", "--set"),
    ("hlb --set lr", "field=value"),
    ("hlb --set =1", "field"),
    ("hlb --set nothing=1", "nothing"),
    ("hlb --set batchsize=1", "did you mean batch_size"),
    ("hlb --set name=mine", "name"),
    ("hlb --set lr=", "lr"),
    ("hlb --set lr=inf", "lr"),
    ("hlb --set batch_size=2.5", "batch_size"),
    ("hlb --set batch_size=1e400", "batch_size"),
    (f"hlb --set batch_size={HUGE}", "batch_size"),
    ("hlb --set drop_last=maybe", "drop_last"),
    ("hlb --set groups=pair", "group_widths"),
    ("hlb --set groups=", "groups"),
    ("hlb --set sizes=", "sizes"),
    ("hlb --set sizes=7", "sizes"),
    ("hlb --set sizes=24,x", "sizes"),
    ("hlb --set activation=tanh", "gelu"),
    ("hlb --set optimizer=adam", "optimizer"),
    ("hlb --set optimizer=torch.optim.Nothing", "Nothing"),
    ("hlb --recipe seed --set averaging_epochs=0", "averaging_epochs"),
    ("hlb --set views=all", "views"),
    ("hlb --set dtype=int8", "dtype"),
    ("hlb --dtype int8", "--dtype"),
    ("hlb --device cpu --dtype tf32", "tf32"),
    ("hlb --device gpu", "gpu"),
    ("hlb --device cuda:x", "cuda:x"),
    ("hlb --device ''", "--device"),
    ("hlb --kernels nothing", "--kernels"),
    ("hlb --kernels triton,nothing=reference", "nothing"),
    ("hlb --kernels triton,sgd=nothing", "nothing"),
    ("hlb --compile maybe", "--compile"),
    ("hlb --graph all", "--graph"),
    ("hlb --device cpu --graph step", "--graph step"),
    ("hlb --channels-last 1", "--channels-last"),
    ("hlb --data nowhere", "nowhere"),
    ("hlb --data text.txt", "text.txt"),
    ("hlb --data folder", "folder"),
    ("hlb --data ''", "--data"),
    ("hlb --json folder", "--json"),
    ("hlb --json text.txt/below", "--json"),
    ("hlb --ledger folder", "--ledger"),
    ("hlb --ledger ''", "--ledger"),
    ("hlb --save folder", "--save"),
    (f"hlb --save {'x' * 256}", "--save"),
    (f"hlb --json {'x' * 256}", "--json"),
    ("hlb --save a --json ./a", "twice"),
    ("hlb --profile a --json ./a", "twice"),
    ("hlb --profile folder", "--profile"),
    ("hlb --profile a --ledger b", "--ledger: with --profile"),
    ("hlb --profile a --runs 3", "--runs: with --profile"),
    ("hlb --profile a --save b", "--save: with --profile"),
    ("hlb --profile a --seed 3", "--seed: with --profile"),
    ("hlb --profile a --eval-every 3", "--eval-every: with --profile"),
    ("hlb --graph run --eval-every 2", "--eval-every: a run that is one graph"),
    ("hlb --device cpu --recipe smoke --kernels triton", INTERPRETER),
    ("hlb sweep --device cpu --recipe smoke --kernels triton,sgd=reference --data synthetic", INTERPRETER),
    ("hlb audit --device cpu --recipe seed --kernels triton", INTERPRETER),
    ("hlb --device cpu --recipe seed --kernels triton --profile a", INTERPRETER),
    ("hlb report", "python -m bench report"),
    ("hlb sweep --runs 0", "--runs"),
    ("hlb sweep --epochs 3", "--epochs"),
    ("hlb sweep --grid nothing", "--grid"),
    ("hlb sweep --grid record94 --recipe seed", "--recipe"),
    ("hlb sweep --grid record94 --random 3", "--random"),
    ("hlb sweep --set lr=1,x", "lr"),
    ("hlb sweep --set lr=0.1,0.2 --random 0", "--random"),
    ("hlb sweep --set lr=0.1,0.2 --random 3", "--random"),
    ("hlb sweep --set nothing=1,2", "nothing"),
    ("hlb sweep --json folder", "--json"),
    ("hlb sweep --ledger folder", "--ledger"),
    ("hlb sweep --graph run --eval-every 2", "--eval-every"),
    ("hlb sweep --arms arms.json --budget 5 --json arms.json", "arms.json: it is to be read and written"),
    ("hlb sweep --arms arms.json --runs 1 --ledger arms.json", "arms.json: it is to be read and written"),
    ("hlb compare", "A, B"),
    ("hlb compare runs.jsonl", "B"),
    ("hlb compare runs.jsonl nowhere.jsonl", "nowhere.jsonl"),
    ("hlb compare runs.jsonl folder", "folder"),
    ("hlb compare runs.jsonl empty.jsonl", "empty.jsonl"),
    ("hlb compare runs.jsonl text.txt", "text.txt"),
    ("hlb compare runs.jsonl runs.jsonl:nothing=1", "nothing"),
    ("hlb compare runs.jsonl runs.jsonl:seed=7", "seed=7"),
    ("hlb compare runs.jsonl runs.jsonl:seed", "seed"),
    ("hlb compare runs.jsonl runs.jsonl --json folder", "--json"),
    ("hlb compare runs.jsonl runs.jsonl --json runs.jsonl", "runs.jsonl: it is to be read and written"),
    ("hlb compare empty.jsonl runs.jsonl:seed=0 --json runs.jsonl", "runs.jsonl: it is to be read"),
    ("hlb compare runs.jsonl runs.jsonl --nonsense", "--nonsense"),
    ("hlb eval", "model"),
    ("hlb eval nowhere.pt", "nowhere.pt"),
    ("hlb eval text.txt", "text.txt"),
    ("hlb eval folder", "folder"),
    ("hlb eval text.txt --json folder", "--json"),
    ("hlb eval text.txt --json ./text.txt", "text.txt: it is to be read and written"),
    ("hlb eval text.txt --dtype int8", "int8"),
    ("hlb eval text.txt --runs 3", "--runs"),
    ("hlb audit --compile on", "--compile"),
    ("hlb audit --runs 3", "--runs"),
    ("hlb audit --json folder", "--json"),
    ("hlb audit --recipe nothing", "nothing"),
    ("hlb recipes nothing", "nothing"),
    ("hlb recipes seed extra", "extra"),
    ("hlb recipes --kernels triton", "--kernels"),
    ("hlb recipes --set lr=1", "--set"),
    ("hlb recipes seed --set lr=x", "lr"),
    ("hlb recipes seed --set batch_size=100000", "batch_size"),
    ("hlb recipes seed --kernels nothing", "--kernels"),
    ("hlb recipes --json folder", "--json"),
    ("hlb env extra", "extra"),
    ("hlb env --json folder", "--json"),
    ("bench nothing", "nothing"),
    ("bench --nonsense", "--nonsense"),
    ("bench --case nothing", "nothing"),
    ("bench --dtype int8", "--dtype"),
    ("bench --samples 0", "--samples"),
    ("bench --json folder", "--json"),
    ("bench --csv folder", "--csv"),
    ("bench --out text.txt", "--out"),
    ("bench --json a --csv ./a", "a"),
    ("bench --direction sideways", "--direction"),
    ("bench sgd --all", "--all"),
    ("bench sgd --direction backward", "no"),
    ("bench asm", "stage"),
    ("bench asm wasm sgd", "wasm"),
    ("bench asm ptx sgd --chip 1.0", "--chip"),
    ("bench asm ptx nothing", "nothing"),
    ("bench trace", "file"),
    ("bench trace folder sgd", "folder"),
    ("bench ncu nothing", "nothing"),
    ("bench vs", "ref"),
    ("bench vs no-such-revision sgd", "no-such-revision"),
    ("bench vs HEAD sgd --repeats 1", "--repeats"),
    ("bench vs HEAD sgd --json folder", "--json"),
    ("bench check nothing", "nothing"),
    ("bench check --jobs 0", "--jobs"),
    ("bench check --json folder", "--json"),
    ("bench tune --jobs none", "--jobs"),
    ("bench tune no-such-pass", "no-such-pass"),
    ("bench tune --from nowhere.json", "nowhere.json"),
    ("bench tune --from text.txt", "text.txt"),
    ("bench tune --fit nowhere.json", "nowhere.json"),
    ("bench tune --fit text.txt", "text.txt"),
    ("bench tune --fit a.json --json b.json", "--json: --fit"),
    ("bench tune --from a.json --jobs 2", "--jobs: --from"),
    ("bench tune r1.conv1 --from a.json", "NAME: --from"),
    ("bench gate nothing", "nothing"),
    ("bench gate --repeats 3", "--repeats"),
    ("bench gate --max-slowdown fast", "--max-slowdown"),
    ("bench gate --recipe nothing", "--recipe"),
    ("bench gate --runs 12", "--runs: only with --recipe"),
    ("bench gate --data synthetic", "--data: only with --recipe"),
    ("bench gate --max-loss 1", "--max-loss: only with --recipe"),
    ("bench gate --from a.json", "--from: only with --static"),
    ("bench gate --update --first 3", "--first: not with --update"),
    ("bench gate --static --runs 12", "--runs: not with --static"),
    ("bench gate --static --data synthetic", "--data: not with --static"),
    ("bench gate --static --repeats 9", "--repeats: not with --static"),
    ("bench gate --static --json a.json", "--json: not with --static"),
    ("bench gate --static --update --junit a.xml", "--junit: not with --update"),
    ("bench gate --static --from nowhere.json", "nowhere.json"),
    ("bench gate --static --from text.txt", "text.txt"),
    ("bench gate --junit folder", "--junit"),
    ("bench report nowhere.jsonl", "nowhere.jsonl"),
    ("bench report empty.jsonl", "empty.jsonl"),
    ("bench report --kernels nowhere.json", "nowhere.json"),
    ("bench report --profile text.txt", "text.txt"),
    ("bench report --out text.txt runs.jsonl", "--out"),
    ("bench report --markdown --out folder", "--out: the tables"),
    ("bench report runs.jsonl --markdown", "LEDGER: the tables"),
    ("bench pairs lr=1", "required: b"),
    ("bench pairs lr=1 nothing=2", "nothing"),
    ("bench pairs lr=1 lr", "field=value"),
    ("bench pairs lr=1 lr=2 --pairs 0", "--pairs"),
    ("bench pairs lr=1 lr=2 --recipe nothing", "nothing"),
    ("bench pairs lr=1 threads=100000", "--threads"),
    ("bench pairs lr=1 lr=2 --json folder", "--json"),
    ("bench pace a.json", "after"),
    ("bench pace nowhere.json nowhere.json", "nowhere.json"),
    ("bench pace text.txt text.txt", "text.txt"),
    ("bench times nowhere", "nowhere"),
    ("bench card --minutes 0", "--minutes"),
    ("bench card --steps nothing", "--steps"),
    ("bench card --steps environment --peer a=b", "--peer: --steps"),
    ("bench card --data nowhere", "--data"),
    ("bench card --out text.txt", "--out"),
)
ALLOWED = 5  # seconds of a processor, for all


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the inputs name, no data, and no signal of a test's process changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HLB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench.__main__.signal, "signal", lambda *_: None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("a text")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "arms.json").write_text('{"recipe": "smoke", "arms": {"one": {"target": 0.5}}}')
    run = {"recipe_fields": hlb.settings.fields(hlb.recipe("seed")), "execution": {}, "dataset": "cifar10"}
    run |= {"status": "ok", "accuracy": 0.94, "train_seconds": 9.0, "eval_seconds": 1.0, "seed": 0}
    ledger.append("runs.jsonl", run)


def test_wrong_input_is_one_line_that_names_it_and_status_2_at_once(place, capsys):
    assert len(INPUTS) >= 120
    files = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    wrong, slow, begin = {}, {}, time.process_time()
    for command, named in INPUTS:
        program, *arguments = shlex.split(command)
        start = time.process_time()
        try:
            status = PROGRAMS[program](arguments)
        except SystemExit as stop:
            status = stop.code
        except Exception as error:
            status = repr(error)
        slow[command] = time.process_time() - start
        out, err = capsys.readouterr()
        out = out.removeprefix("building ...\n")  # data are looked for then
        if status != 2 or out or not 1 <= err.count("\n") <= 2 or named not in err or "Traceback" in err:
            wrong[command] = (status, out[:200], err[:400])
    assert not wrong, "\n".join(map(str, wrong.items()))
    assert files == {path: path.read_bytes() for path in files}  # nothing was lost
    slowest = sorted(slow.items(), key=lambda item: -item[1])[:5]
    took = time.process_time() - begin
    assert took < ALLOWED, (took, slowest)
