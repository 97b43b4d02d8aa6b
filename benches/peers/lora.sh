#!/usr/bin/env bash
# Compares extraction and resizing of LoRA adapters.
EXAMPLE=lora_matrices SCRIPT=lora.py exec "$(dirname "$0")/run.sh" "$@"
