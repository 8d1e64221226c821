#!/bin/bash
# Prompts of different lengths give the same results in a batch as alone (padding); empty prompts, too long prompts and "<image>" in a prompt are refused in one line.
# Based on: baaivision/Emu3#67 and reports about the padding side
. "$(dirname "$0")/../env.sh"; w pass-generate; M=$(emu)
MODEL=$M/model $PY - <<'P'
import os
from pics import picture
from check import *
from nextembed import Sampling, Talker
t = Talker.load(os.environ["MODEL"]); v = Verdict()
ps = [["a"], [picture(1), "what is this thing in the picture"], [picture(2), picture(3)], ["the cat sat on the mat and then"]]
for beams in (1, 3): S = Sampling(num_beams=beams, max_new_tokens=6); alone = [t.write([p], S)[0] for p in ps]; v(f"{beams} beams", alone == t.write(ps, S), alone)
for p in ([""], [], ["x" * 5000], [picture(1), "a <image> tag"]):
    try: v(str(p)[:20], False, t.write([p]))
    except ConfigError as err: v(str(p)[:20], True, err)
v.end()
P
