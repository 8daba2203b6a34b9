"""Conversations: chat templates, a chat for scripts, and the one in the terminal."""

from kerasllm.chat.conversation import Chat
from kerasllm.chat.prompts import PLAIN_TEMPLATE, ChatPrompts
from kerasllm.chat.templates import render
from kerasllm.chat.terminal import open_chat, run_chat

__all__ = ["PLAIN_TEMPLATE", "Chat", "ChatPrompts", "open_chat", "render", "run_chat"]
