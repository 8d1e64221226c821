#!/bin/bash
# JSON lines as written by Windows and by json.dumps(ensure_ascii=False). Fault: a BOM loses the first row; U+2028 or U+0085 in a text breaks
# `evaluate` and `generate --input`; a BOM stays in the first text of a .txt file. Based on: huggingface/datasets#8241, microsoft/promptflow#4172, wbolster/jsonlines#68
. "$(dirname "$0")/../env.sh"; w json-lines-bytes
$PY - <<'P'
from pathlib import Path
from pics import save
from check import *
from nextembed.evaluation.language.tables import read_table
from nextembed.inference.prompts import read_prompts
for i in range(2): save(f"{i}.png", i); save(f"d/{i}.png", i)
bom, line = b"\xef\xbb\xbf", '{{"image":"{0}.png","text":"a{1}b","question":"q"}}\n'
v = Verdict()
def do(f):
    try: return f()
    except Exception as err: return err
Path("d/train.jsonl").write_bytes(bom + (line.format(0, " ") + line.format(1, " ")).encode()); got = texts("pairs", "d"); v("training, BOM: 2 documents", not isinstance(got, Exception) and len(got[0]) == 2, got)
for what, data in (("BOM", bom + line.format(0, " ").encode()), ("U+2028", line.format(0, "\u2028").encode()), ("U+0085", line.format(0, "\u0085").encode())):
    Path("q.jsonl").write_bytes(data)
    got = do(lambda: len(read_table(Path("q.jsonl")))); v(f"evaluate, {what}", got == 1, got); got = do(lambda: len(read_prompts("q.jsonl"))); v(f"generate --input, {what}", got == 1, got)
Path("t").mkdir(); Path("t/a.txt").write_bytes(bom + b"hello\n"); got = texts("text", "t"); v(".txt, BOM: hello", got[0] == [["hello"]], got); v.end()
P
