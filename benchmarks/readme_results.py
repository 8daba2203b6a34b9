"""Write the results table of both READMEs from stored reports of quickstart: `python benchmarks/readme_results.py`.

benchmarks/results/quickstart.json is what `make quickstart` wrote to runs/quickstart/report.json;
benchmarks/results/quickstart-zh.json is the report of
`kerasllm quickstart --source CHINESE_ARTICLES --vocabulary-size 6000 --epochs 3`.
"""

import re
from pathlib import Path
from typing import Any

from kerasllm.files import atomic_file, read_json

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- results -->.*<!-- /results -->", re.DOTALL)
WORDS = {
    "README.md": {
        "head": "| bits per byte on held-out articles | English | Chinese |",
        "note": (
            "English: {en[documents]} articles, {en[tokens]:,} tokens, {en[words]:,} words, {en[bytes]:,} bytes. "
            "Chinese: {zh[documents]} articles, {zh[tokens]:,} tokens, {zh[bytes]:,} bytes. "
            "Context {en[context]}, stride {en[stride]}. Lower is better. "
            "Measured on the SavedModel and on the TFLite file too, with the same result: greedy continuations equal, "
            "logits within {difference:.0e}. "
            "`make quickstart` took {seconds:.0f} s after the install ({device}, commit {commit})."
        ),
    },
    "README.zh-CN.md": {
        "head": "| 留出文章上每字节比特数 | 英文 | 中文 |",
        "note": (
            "英文：{en[documents]} 篇文章，{en[tokens]:,} 个词元，{en[words]:,} 个词，{en[bytes]:,} 字节；中文："
            "{zh[documents]} 篇文章，{zh[tokens]:,} 个词元，{zh[bytes]:,} 字节。"
            "上下文 {en[context]}，步幅 {en[stride]}。越低越好。"
            "SavedModel 和 TFLite 文件各自测得的结果相同：贪心续写一致，logits 相差不超过 {difference:.0e}。"
            "安装之后 `make quickstart` 用了 {seconds:.0f} 秒（{device}，提交 {commit}）。"
        ),
    },
}


def scores(report: dict[str, Any]) -> dict[str, float]:
    """Bits per byte of baselines and models."""
    models = {f"**{name}**": e["scores"]["saved_model"]["bits_per_byte"] for name, e in report["models"].items()}
    return {**report["baselines_bits_per_byte"], **models}


def table(english: dict[str, Any], chinese: dict[str, Any], words: dict[str, str]) -> str:
    """The block of one README."""
    both = scores(english), scores(chinese)
    rows = sorted(both[0], key=lambda name: both[0][name])
    checks = [c for report in (english, chinese) for e in report["models"].values() for c in e["verification"].values()]
    note = words["note"].format(
        en=english["models"]["lstm"]["scores"]["keras"],
        zh=chinese["models"]["lstm"]["scores"]["keras"],
        difference=max(check["max_logit_difference"] for check in checks),
        seconds=english["seconds"]["total"],
        device=english["device"],
        commit=english["commit"],
    )
    lines = [words["head"], "|---|---|---|"]
    lines += [f"| {name} | {both[0][name]:.3f} | {both[1][name]:.3f} |" for name in rows]
    return "\n".join(["<!-- results -->", *lines, "", note, "<!-- /results -->"])


def main() -> None:
    """Rewrite the block in both READMEs."""
    english, chinese = (read_json(ROOT / f"benchmarks/results/quickstart{end}.json") for end in ("", "-zh"))
    for name, words in WORDS.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        with atomic_file(ROOT / name, "w") as file:
            file.write(BLOCK.sub(lambda _, words=words: table(english, chinese, words), text))


if __name__ == "__main__":
    main()
