"""A chat remembers what fits the context, says on a phone what it says in Keras, and behaves in a terminal."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from artefacts import pair, saved_model, tflite
from model_cases import BIDIRECTIONAL, make

from kerasllm.chat import Chat, run_chat
from kerasllm.edge import EdgeModel
from kerasllm.errors import InputError
from kerasllm.serving import ServedModel
from kerasllm.text import ByteTokenizer


class Echo:
    """A runner that answers with what it was asked, and notes every prompt."""

    def __init__(self, context_length=200, answer=None):
        self.tokenizer, self.context_length, self.answer, self.asked = ByteTokenizer(), context_length, answer, []
        self.options = []

    def stream(self, ids, **options):
        self.asked.append(self.tokenizer.decode(ids))
        self.options.append(options)
        yield from self.answer or [f" re: {self.asked[-1].splitlines()[-2]}"]


class TestConversations:
    def test_the_history_is_read_again(self):
        chat = Chat(Echo(), system="Be kind.", max_new_tokens=5, temperature=0.5)
        assert chat.reply("one") == "re: User: one"
        assert "".join(chat.stream("two")) == "re: User: two"
        asked = chat._model.asked[-1]
        assert asked == "System: Be kind.\nUser: one\nAssistant: re: User: one\nUser: two\nAssistant:"
        assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 2]
        assert [o["seed"] for o in chat._model.options] == [0, 1]
        assert all(o["temperature"] == 0.5 and o["stop"] == ["\nUser:"] for o in chat._model.options)
        chat.reset()
        chat.set_system(None)
        chat.reply("three")
        assert chat._model.asked[-1] == "User: three\nAssistant:"

    def test_the_oldest_turns_are_forgotten_and_the_system_message_stays(self):
        chat = Chat(Echo(context_length=100, answer=["ok"]), system="S", max_new_tokens=20)
        for number in range(30):
            chat.reply(f"message {number}")
            ids = chat._tokenizer.prompt_ids(chat._model.asked[-1])
            assert len(ids) <= 80
            asked = chat._model.asked[-1]
            assert asked.startswith("System: S\nUser: message") and asked.endswith(f"message {number}\nAssistant:")
        # As many as fit: one turn more ("User: message 28\nAssistant: ok\n" is 31 bytes) would not.
        assert asked.count("User:") == 2 and len(ids) + 31 > 80
        assert len(chat.messages) == 1 + 2 * 2

    def test_a_long_history_is_cut_to_a_short_message(self):
        chat = Chat(Echo(context_length=None, answer=["ok"]), max_new_tokens=20)
        for number in range(40):
            chat.reply(f"{number}")
        chat.context_length = 120
        chat.reply("x" * 59)
        assert chat._model.asked[-1] == "User: 39\nAssistant: ok\nUser: " + "x" * 59 + "\nAssistant:"

    def test_a_message_that_is_too_long_is_refused_with_the_numbers(self):
        chat = Chat(Echo(context_length=100), max_new_tokens=20)
        chat.reply("short")
        before = chat.messages
        with pytest.raises(InputError, match=r"the message: 98 tokens .* context of 100, .* room for 80 beside 20 new"):
            chat.reply("x" * 80)
        assert chat.messages == before
        with pytest.raises(InputError, match="system message and message: .* context of 100"):
            chat.set_system("x" * 90)
        assert chat.messages == before
        with pytest.raises(InputError, match="lower max_new_tokens"):
            Chat(Echo(context_length=100), max_new_tokens=100)

    @pytest.mark.parametrize(("count", "message"), [(100_000, "100000 new tokens leave no room"), (0, "at least 1")])
    def test_answers_that_leave_no_room_are_refused(self, count, message):
        with pytest.raises(InputError, match=message):
            Chat(Echo(context_length=512), max_new_tokens=count)

    def test_a_misspelt_option_is_refused_at_once(self):
        for arguments in (pair("learned"), [EdgeModel(tflite("learned"))]):
            with pytest.raises(InputError, match=r"^tempreture: is no option .*temperature, top_k"):
                Chat(*arguments, tempreture=1.0)

    def test_who_stops_listening_keeps_what_was_said(self):
        chat = Chat(Echo(answer=["a", "b", "c"]))
        pieces = chat.stream("go")
        assert [next(pieces), next(pieces)] == ["a", "b"]
        pieces.close()
        assert chat.messages == [{"role": "user", "content": "go"}, {"role": "assistant", "content": "ab"}]
        pieces = chat.stream("never heard")
        pieces.close()
        assert len(chat.messages) == 2

    def test_what_cannot_chat_is_refused(self):
        with pytest.raises(InputError, match="bidirectional"):
            Chat(make(BIDIRECTIONAL["bidirectional"]), ByteTokenizer())
        with pytest.raises(InputError, match="no tokenizer"):
            Chat(pair("learned")[0])
        with pytest.raises(InputError, match="takes texts, not token ids"):
            Chat(ServedModel(saved_model("learned")))
        with pytest.raises(InputError, match="use a template that takes"):
            Chat(Echo(), template="{{ raise_exception('no') }}")

    @pytest.mark.parametrize("name", ["learned", "grouped"])
    def test_a_phone_says_what_keras_says(self, name):
        options = {"max_new_tokens": 12, "temperature": 0.8, "top_k": 40, "seed": 3}
        chats = Chat(*pair(name), **options), Chat(EdgeModel(tflite(name)), **options)
        said = [[chat.reply(text) for text in ("Hello", "我爱北京")] for chat in chats]
        assert said[0] == said[1]
        assert len(set(said[0])) == 2


class TestTerminal:
    def piped(self, monkeypatch, capsys, data, **options):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        run_chat(tflite("learned"), max_new_tokens=8, **options)
        return capsys.readouterr().out

    def test_a_pipe_gets_answers_alone(self, monkeypatch, capsys):
        lines = "Hello\n\n/help\n/system 你好\n我爱北京\n/reset\nHello\n/exit\nnever\n"
        output = self.piped(monkeypatch, capsys, lines.encode() + b"\xff\n")
        expected = Chat(EdgeModel(tflite("learned")), max_new_tokens=8)
        first = expected.reply("Hello")
        expected.set_system("你好")
        second = expected.reply("我爱北京")
        expected.reset()
        assert output == "".join(f"{text}\n" for text in (first, second, expected.reply("Hello")))

    def test_bad_lines_are_one_line(self, monkeypatch, capsys):
        assert self.piped(monkeypatch, capsys, b"\xff\xfe\x00\n/usr/bin is what?").endswith("\n")
        with pytest.raises(InputError, match="^/rest: is no command"):
            self.piped(monkeypatch, capsys, b"/rest\n")
        with pytest.raises(InputError, match="the message: .* context of 128"):
            self.piped(monkeypatch, capsys, b"x" * 500)

    def test_in_a_terminal(self):
        """Ctrl-C ends an answer and not the chat; Ctrl-D ends the chat with code 0."""
        program = (
            "import signal, sys, time\nfrom kerasllm.chat import run_chat\nfrom kerasllm.edge import EdgeModel\n"
            # a process that is started in the background ignores it
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "def stream(self, ids, **options):\n"
            "    text = self.tokenizer.decode(ids)\n"
            "    for piece in ([text[-12:]] if 'slow' not in text else ['\\x1b[31m'] + ['tick '] * 1000):\n"
            "        yield piece\n        time.sleep(0.02 if 'slow' in text else 0)\n"
            "EdgeModel.stream = stream\nrun_chat(sys.argv[1])\nassert 'tensorflow' not in sys.modules\n"
        )
        master, slave = pty.openpty()
        command = [sys.executable, "-c", program, str(tflite("learned"))]
        environment = {**os.environ, "PYTHONUTF8": "1", "TERM": "dumb"}
        child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        try:
            shown = until(master, "> ")
            assert "/help lists the commands" in shown and "continues a plain transcript" in shown
            for typed, answer in (
                ("/help\n", "/system TEXT"),
                ("/rest\n", "Error: /rest: is no command; /help lists them"),
                ("我爱北京\n", "Assistant:"),
                ("x" * 200 + "\n", "Error: the message: 218 tokens"),
            ):
                os.write(master, typed.encode())
                assert answer in until(master, f"{answer}", "\n> ")
            os.write(master, b"slow\n")
            assert "\ufffd[31m" in until(master, "tick tick")
            os.killpg(child.pid, signal.SIGINT)
            until(master, "[stopped]", "> ")
            os.write(master, b"/reset\n")
            until(master, "> ")
            os.write(master, "好\n".encode())
            assert "Traceback" not in until(master, "Assistant:", "> ")
            os.write(master, b"\x04")
            assert child.wait(30) == 0
        finally:
            child.kill()
            child.wait()
            os.close(master)


def until(master, *wanted):
    """What a terminal shows until it has shown these strings one after the other."""
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        text, at = shown.decode(errors="replace"), 0
        for string in wanted:
            at = text.find(string, at) + len(string) if string in text[at:] else -1
            if at < 0:
                break
        if at >= 0:
            return text
        if select.select([master], [], [], 1)[0]:
            shown += os.read(master, 4096)
    raise AssertionError(f"waited for {wanted}, saw {shown.decode(errors='replace')[-500:]}")


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france_and_what_was_said():
    import kerasllm

    chat = Chat(*kerasllm.load("smollm2-135m-instruct"), max_new_tokens=48)
    assert "Paris" in chat.reply("What is the capital of France?")
    assert "Rome" in chat.reply("And of Italy?")
    assert "<|im_" not in "".join(message["content"] for message in chat.messages)
