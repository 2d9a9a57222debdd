"""Sizes and checksums of released data files, by their path in the data directory.

`data_directory.refuse_damaged` compares them. Jericho's story files are known by jericho itself.
"""

from __future__ import annotations

_KNOWN = """\
fa22fb128a4174665ec5c94b 795000 alfworld/alfworld_games_474.tar.xz
1e8985cd142ca97dde0a5b6e 1077272 alfworld/alfworld_initial_state_pddl_706.tar.xz
0ae4826ca105f91a7fabd5a2 10795 alfworld/eto_gamefile_id.txt
29174ea644561c798186689a 23554 babyai/agentboard_babyai_test.jsonl
5bdd499f4aba167be54ca098 10675 pddl/agentboard_pddl_test.jsonl
a525573b1229c1913efb8cb8 5574 pddl/barman.pddl
0e48b310b50b75d53f5c347d 1157 pddl/barman/p01.pddl
4a2062baf57ce17ce08bf0e0 1122 pddl/barman/p02.pddl
82af3f36c400209746ff8a7d 1122 pddl/barman/p03.pddl
f8bce10cf7ab7dc83e4e7770 1122 pddl/barman/p04.pddl
d950fbda890b2bcc8543dc23 1270 pddl/barman/p05.pddl
0a8ecf67c09e243fa0fc5269 1303 pddl/barman/p06.pddl
c3727c31caa4d273fcbc3333 1303 pddl/barman/p07.pddl
852e8d69a3762ac38a0b031c 1303 pddl/barman/p08.pddl
e2058aab7131f65528e49b81 1451 pddl/barman/p09.pddl
d058c31ce5c8a27c85536311 1418 pddl/barman/p10.pddl
7efba30b1226a8cad4ba82eb 1418 pddl/barman/p11.pddl
08288599b370f3d349237e5e 1451 pddl/barman/p12.pddl
5ae2c0cc821f319581512809 1657 pddl/barman/p13.pddl
dcca67b67c42641ac2e80666 1124 pddl/barman/p14.pddl
576d5baad2cdeefd6a9f7e8d 1159 pddl/barman/p15.pddl
4d30dbfdb9be3c58524b2dee 1305 pddl/barman/p16.pddl
376f8c8ed47be6f0d73f7b60 1342 pddl/barman/p17.pddl
efdef0ac44d2d6c529a14e31 1305 pddl/barman/p18.pddl
0c94a0fc87db2856b2c97dad 1842 pddl/barman/p19.pddl
a6e5dc9b5963c02ee99a0a36 1770 pddl/barman/p20.pddl
542cc4051f965a054a0563d3 1043 pddl/blockworld.pddl
4568e078b8fd1a9f3303de37 182 pddl/blockworld/problem1.pddl
fac86e3c7cfec658d0c144f2 310 pddl/blockworld/problem10.pddl
6b7bd21453c84cbe66ce5910 182 pddl/blockworld/problem2.pddl
d86b9836219b6bb290344aca 210 pddl/blockworld/problem3.pddl
dc96db073611b6e37ae246bf 207 pddl/blockworld/problem4.pddl
65d1f8790c5d6d6ee528c39c 210 pddl/blockworld/problem5.pddl
3e911fe5bd6f98c227be2efe 221 pddl/blockworld/problem6.pddl
5ed87381dc49e44cd317f8f4 252 pddl/blockworld/problem7.pddl
9bf3b029ee55c9ad78719b1d 235 pddl/blockworld/problem8.pddl
4a5752b138157493b5ca615a 324 pddl/blockworld/problem9.pddl
7c791d3e9db3e8ef6fe7fb3d 981 pddl/gripper.pddl
968130f7f9f914a4e12c81d3 626 pddl/gripper/prob01.pddl
434736130b325b24b189ac10 802 pddl/gripper/prob02.pddl
8b2c4e1f36a0e61e215b9c83 991 pddl/gripper/prob03.pddl
0b65100072f50403c56c60a2 1171 pddl/gripper/prob04.pddl
82bc711ead36c2f826e098b8 1355 pddl/gripper/prob05.pddl
3841b67c135d52dfb6a9065a 626 pddl/gripper/prob06.pddl
1762cb13a03375fb0a0ab61b 802 pddl/gripper/prob07.pddl
273b978ce8259028c871a532 802 pddl/gripper/prob08.pddl
ca573ba1fac559c933a7a343 1171 pddl/gripper/prob09.pddl
f30d5735e77d7f046a543622 1172 pddl/gripper/prob10.pddl
fcb09d87de69188441bc6695 1172 pddl/gripper/prob11.pddl
39473160ab98e7555541f1a8 627 pddl/gripper/prob12.pddl
cbff246470bb3d719ae46133 627 pddl/gripper/prob13.pddl
8715f3f8dc4adb0a6fd4936a 627 pddl/gripper/prob14.pddl
7d3284e44ace3759fe414d13 1356 pddl/gripper/prob15.pddl
21590b2215cc696950a5365c 1356 pddl/gripper/prob16.pddl
9445f4d20cfc913113269514 1356 pddl/gripper/prob17.pddl
a61ebf95c0faf38c0c4f45ae 803 pddl/gripper/prob18.pddl
06ef84c87bd8a0d97a807450 803 pddl/gripper/prob19.pddl
6ffd2ac87f75431f2330c152 1356 pddl/gripper/prob20.pddl
f83a60b37fc27aa9abfa15f6 2889 pddl/tyreworld.pddl
c4567ab50deeac38ac1bf11e 417 pddl/tyreworld/p01.pddl
e9397bf5c83dd2dfdcb5e279 1621 pddl/tyreworld/p02.pddl
99ea6a748dedf941dfa72de2 795 pddl/tyreworld/p03.pddl
28fb330d691e0616719c9f10 984 pddl/tyreworld/p04.pddl
ee19a62c321823f7ffe219d7 399 pddl/tyreworld/p05.pddl
1a104d4ff627d91c04fad8bd 705 pddl/tyreworld/p06.pddl
54b6ea8e10b4015ee1e5bf03 703 pddl/tyreworld/p07.pddl
9b8488c7c33464d01ac99539 685 pddl/tyreworld/p08.pddl
a960940c30c107557b826269 835 pddl/tyreworld/p09.pddl
68630c95c47f0584793b59ac 736 pddl/tyreworld/p10.pddl
78084ef4393d2da87b215074 13419 sciworld/dev_indices.json
035592f47fbe1309b6ed1a26 984 sciworld/max_steps.json
0f1b450efc4922f2d5867cb0 2324 sciworld/scienceworld_1.2.3_splits.json
5b02636ef23caeb1da567814 1278 sciworld/taskname2id.json
dfe4ab263824f04a49cf977b 14541 sciworld/test_indices.json
c79eea7858383b829269986e 96759 sciworld/train_indices.json
94ab8b4cb346289e8249b8de 7604 tool/academia.jsonl
3b8a34540e9aaa8b5e8b8640 155848 tool/movie.jsonl
3c5b4cb195b61fb2ea062f3a 40205 tool/sheet.jsonl
c3b6747a954e936acc394b71 264081 tool/sheet_test.xlsx
8375b721746a771c4407c8d4 404356 tool/todo.jsonl
3c68ef79a6bc34b8862abf51 3099 tool/todo_projects.json
3dd46d00e4bbc3dc0bf6d6ce 124698 tool/weather.jsonl
0e7fa2b9646a8800761a29fe 1223 webshop/eto_test_indices.json
15f44b4a5ca1e8c2f2a7f2e1 10796 webshop/eto_train_indices.json
1524f438ffbc51c7e308e635 244809 webshop/goal_query_map.json
b68746ed66cd31fdc5f70eb3 999419 webshop/human_goals.json
f88a36314a397b53b3d9c3fa 147099 webshop/items_ins_v2_1000.json
a5806944078f0cea26b2bf99 1026322 webshop/webshop_1k_lucene_docs.jsonl.gz
"""


def _row(line: str) -> tuple[str, tuple[int, str]]:
    digest, size, relative = line.split(" ", 2)
    return relative, (int(size), digest)


KNOWN = dict(_row(line) for line in _KNOWN.splitlines())
"""Size and the first 24 hex digits of the SHA-256."""
