"""What `forms` and `build` know of Mandarin words: where requests are open, what asks, agrees or takes leave.

Texts are in normal form (`forms.spoken`): no spaces between characters, no punctuation.
"""

import random
import re


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


OPEN_ENDS = _listed(
    "的 把 被 和 跟 与 在 从 给 对 向 往 为 比 让 请 帮 替 用 将 按 当 关于 至于 除了 因为 所以 如果 要是 "
    "虽然 但是 可是 不过 而且 或者 还是 以及 然后 就是 就 才 也 都 还 又 再 很 太 更 最 非常 特别 比较 我 "
    "我们 你 您 他 她 它 我想 我要 我需要 帮我 给我 请问 麻烦 能不能 可不可以 可以 能 会 要 想 应该 可能 必须 "
    "是 有 有没有 是不是 什么 什么样的 怎么 怎样 哪 哪个 哪些 哪家 几 多 为什么 如何 这 那 这个 那个 这些 "
    "那些 一个 一下 一些 每 每个 两个 第 从哪 到"
)
"""A request that ends so is rarely complete."""

CLOSED_ENDS = _listed(
    "给我 帮帮我 告诉我 教我 陪我 联系我 叫我 提醒我 通知我 爱你 谢谢你 谢谢您 找你 有没有 是不是 能不能 可不可以 可以 "
    "不可以 什么 为什么 怎么 哪个 哪些 哪家 这个 那个 这些 那些 一个 一下 一些 每个 还有 没有 会不会 不会 要不要 不要 "
    "不想 不太"
)
"""Those of them that can end a request after all ("你想吃什么"); a cut there is clear only early on."""

_CUT_OFF = _listed(
    "把 被 和 跟 与 从 对 向 往 比 让 请 帮 替 将 关于 至于 除了 因为 所以 如果 要是 虽然 但是 可是 而且 或者 "
    "以及 然后 非常 特别 我想 我需要 请问 能不能 可不可以 什么样的"
)
_QUESTION = re.compile(
    r"(吗|呢|么|没有|不行|不好|对不对|是不是|好不好|行不行)$"
    r"|什么|怎么|怎样|哪|谁|几[个点号岁月年天次本张]|多少|多[久远高长大]|为何|如何|是否|是不是|有没有|能不能"
    r"|可不可以|会不会|要不要"
)
_NOMINAL = re.compile(r"是|什么|怎么|谁|哪")
_LEAVE = re.compile(
    r"就这些|没有了|没别的|没其他|没什么了|没事了|不用了|不需要了|不要了|先这样|就这样吧|到此为止|再见|拜拜"
)
_ASKS = re.compile(r"什么|怎么|哪|谁|几|多少|帮我|给我|请|吗|想要|查|订|找|告诉")
_AGREEMENT = re.compile(
    r"(好|好的|好吧|行|行吧|对|对的|对啊|嗯|是|是的|是啊|没错|可以|当然|谢谢|谢谢你|多谢|不错|很好|太好了|太棒了|棒|喜欢|我喜欢"
    r"|没问题|听起来不错|就这样|啊|呀|哦|吧|了)+"
)
_BARE_ANSWER = re.compile(
    r"(是|不是|对|不对|好|不好|行|不行|可以|不可以|有|没有|会|不会|能|不能|要|不要|想|不想)(的|了|啊|呀)?"
)
_REPLY_START = re.compile(r"好|行|对|不|嗯|是的|没|谢|可以|那就|那个|它|他|她|就")
_CONJUNCTION = re.compile(r"而且|但是|可是|因为|所以|如果|要是|不过|然后|另外|还有|虽然|并且|同时|顺便")
_SIMILAR: dict[str, str] = dict(
    pair.split("=")
    for pair in _listed(
        "在=再 再=在 他=她 她=他 的=得 得=的 做=作 作=做 坐=做 那=哪 哪=那 事=是 是=事 以=已 已=以 买=卖 像=向 "
        "向=像 近=进 进=近 园=圆 带=戴 戴=带 里=理 明=名 名=明 多=都 有=又 又=有 到=道 道=到 会=回 回=会 长=常 "
        "常=长 气=汽 号=好 元=圆 想=响 听=厅 新=心 心=新 一=医 四=是 十=时 时=十 家=加 加=家"
    )
)
"""A character, and another that sounds like it."""

_LEANS_ON = ("请帮我", "帮我", "请问", "我想", "我要", "我需要", "麻烦你", "给我", "你能", "能不能", "可以")


def is_question(plain: str) -> bool:
    """Whether it asks something."""
    return _QUESTION.search(plain) is not None


def ends_open(plain: str) -> bool:
    """Whether it ends in a word that usually goes on."""
    return plain.endswith(OPEN_ENDS)


def is_cut_off(plain: str) -> bool:
    """Whether it ends in a word that always goes on."""
    return plain.endswith(_CUT_OFF)


def is_unfinished(head: str, num_words: int) -> bool:
    """Whether `head`, the beginning of a text of `num_words` characters, is clearly not a complete request."""
    if not ends_open(head) or num_words - len(head) < 1:
        return False
    if head.endswith("的"):  # "这是干什么用的" is complete
        return _NOMINAL.search(head) is None
    return not head.endswith(CLOSED_ENDS) or (len(head) <= 3 and head not in CLOSED_ENDS) or is_cut_off(head)


def takes_leave(plain: str) -> bool:
    """Whether it says that nothing more is wanted."""
    return _LEAVE.search(plain) is not None and _ASKS.search(plain) is None


def agrees(plain: str) -> bool:
    """Whether it does nothing but agree or thank."""
    return _AGREEMENT.fullmatch(plain) is not None


def is_bare_answer(plain: str) -> bool:
    """Whether it is a complete answer to a question with yes or no."""
    return _BARE_ANSWER.fullmatch(plain) is not None


def stands_alone(plain: str) -> bool:
    """Whether a turn of a dialogue can be said without the turn before it."""
    return len(plain) >= 7 and _REPLY_START.match(plain) is None


def goes_on(rest: str) -> bool:
    """Whether `rest` begins with a conjunction, so that what is before it could have been all."""
    return _CONJUNCTION.match(rest) is not None


def hesitation_at(plain: str) -> int:
    """Where a speaker hesitates: after the words that lead up to a request, or at its beginning."""
    return next((len(words) for words in _LEANS_ON if plain.startswith(words) and len(plain) > len(words)), 0)


def misrecognised(plain: str, rng: random.Random) -> str:
    """`plain` with one or two characters that sound like those that were said."""
    places = [at for at, character in enumerate(plain) if character in _SIMILAR]
    characters = list(plain)
    for at in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
        characters[at] = _SIMILAR[characters[at]]
    return "".join(characters)
