"""Draws text for PP-OCRv4's three models: inputs for calibration and for the test, in other fonts.

usage: draw_text.py FOLDER OUT

FOLDER is what fetch.sh brings. Needs numpy and Pillow. Writes to OUT:

    rec_calibration.npz, rec_test.npz   x: lines × 3 × 48 × 320, half Chinese, half English
    rec_test.json                       the 500 texts of the test
    cls_calibration.npz, cls_test.npz   x: lines × 3 × 48 × 192, every other one upside down
    det_calibration.npz, det_test.npz   x: pages × 3 × 480 × 480

Fonts of the test are in no calibration input; neither are its texts.
"""

import json
import pathlib
import random
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = {
    "calibration": {
        "zh": ["uming.ttc", "wqy-zenhei.ttc"],
        "en": ["DejaVuSans.ttf", "DejaVuSerif.ttf", "Lato-Regular.ttf", "Lato-Bold.ttf"],
    },
    "test": {
        "zh": ["wqy-microhei.ttc", "ukai.ttc", "LXGWWenKai-Regular.ttf"],
        "en": ["LiberationSans-Regular.ttf", "LiberationSerif-Regular.ttf", "OpenSans-Regular.ttf"],
    },
}


class Texts:
    """Chinese words by their frequency, and English definitions."""

    def __init__(self, folder, chance):
        self.chance = chance
        rows = [line.split() for line in (folder / "words.zh.txt").open(encoding="utf-8")]
        self.words = [row[0] for row in rows]
        self.weights = [int(row[1]) for row in rows]
        with (folder / "data.noun").open(encoding="utf-8") as lines:
            self.glosses = [line.split("| ")[1].strip() for line in lines if "| " in line]

    def line(self, language):
        if language == "zh":
            words = self.chance.choices(self.words, self.weights, k=9)
            text = "".join(words)[: self.chance.randint(5, 10)]
            return text
        words = self.chance.choice(self.glosses).split()
        start = self.chance.randrange(max(1, len(words) - 3))
        text = ""
        for word in words[start:]:
            if len(text) + len(word) > 24:
                break
            text = f"{text} {word}".strip()
        return text.encode("ascii", "ignore").decode() or "word"


def line_image(text, font, chance):
    """A line of text on paper of any light colour, a little blurred and noisy."""
    size = chance.randint(28, 44)
    font = ImageFont.truetype(str(font), size)
    left, top, right, bottom = font.getbbox(text)
    margin = chance.randint(3, 8)
    paper = tuple(chance.randint(200, 255) for _ in range(3))
    ink = tuple(chance.randint(0, 90) for _ in range(3))
    image = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, ink, font)
    image = image.filter(ImageFilter.GaussianBlur(chance.uniform(0, 0.8)))
    noise = np.random.default_rng(chance.randrange(1 << 30)).normal(0, chance.uniform(0, 8), (*image.size[::-1], 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def fitted(image, height, width):
    """The line at this height, padded on the right; squeezed if it is too long."""
    scaled = image.resize((max(1, min(width, round(image.width * height / image.height))), height), Image.BILINEAR)
    pixels = (np.asarray(scaled, np.float32)[:, :, ::-1] / 255 - 0.5) / 0.5
    padded = np.zeros((3, height, width), np.float32)
    padded[:, :, : scaled.width] = pixels.transpose(2, 0, 1)
    return padded


def page(texts, fonts, chance, side):
    image = Image.new("RGB", (side, side), tuple(chance.randint(190, 255) for _ in range(3)))
    top = chance.randint(5, 40)
    while top < side - 30:
        language = chance.choice(["zh", "en"])
        line = line_image(texts.line(language), chance.choice(fonts[language]), chance)
        scale = chance.uniform(0.5, 1.1)
        line = line.resize((round(line.width * scale), round(line.height * scale)), Image.BILINEAR)
        image.paste(line, (chance.randint(0, max(0, side - line.width)), top))
        top += line.height + chance.randint(4, 50)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (np.asarray(image, np.float32)[:, :, ::-1] / 255 - mean) / deviation
    return pixels.transpose(2, 0, 1).astype(np.float32)


def main(folder, out):
    out.mkdir(parents=True, exist_ok=True)
    for part, seed, lines, directions, pages in [("calibration", 1, 300, 200, 24), ("test", 2, 500, 200, 12)]:
        chance = random.Random(seed)
        texts = Texts(folder, chance)
        fonts = {language: [folder / "fonts" / name for name in names] for language, names in FONTS[part].items()}
        inputs, labels = [], []
        for number in range(lines):
            language = ["zh", "en"][number % 2]
            text = texts.line(language)
            inputs.append(fitted(line_image(text, chance.choice(fonts[language]), chance), 48, 320))
            labels.append({"text": text, "language": language})
        np.savez_compressed(out / f"rec_{part}.npz", x=np.stack(inputs))
        (out / f"rec_{part}.json").write_text(json.dumps(labels, ensure_ascii=False))
        inputs = []
        for number in range(directions):
            language = ["zh", "en"][number // 2 % 2]
            image = line_image(texts.line(language), chance.choice(fonts[language]), chance)
            inputs.append(fitted(image.rotate(180) if number % 2 else image, 48, 192))
        np.savez_compressed(out / f"cls_{part}.npz", x=np.stack(inputs))
        np.savez_compressed(out / f"det_{part}.npz", x=np.stack([page(texts, fonts, chance, 480) for _ in range(pages)]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
