"""What goes wrong, in the language of the page.

The rest of the package speaks English. Here is what its sentences are in Chinese, by their form: no rule is written
twice, and a sentence that is not here is shown as it is.
"""

# Chinese has its own punctuation.
# ruff: noqa: RUF001

from __future__ import annotations

import html
import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import gradio as gr
from pydantic import ValidationError

from inst.errors import InstError
from inst.studio.page.texts import Texts
from inst.texts import one_line

CHINESE_PROBLEMS = {
    # Jobs
    "The studio is stopping: try again in a minute.": "画室正在关闭：请一分钟后再试。",
    "You have {n} unfinished jobs, as many as one person may have: wait for one of them, or cancel it.": (
        "您有 {n} 个未完成的任务，已达每人上限：请等待其中一个完成，或取消它。"
    ),
    "There are {n} unfinished jobs: try again later.": "已有 {n} 个未完成的任务：请稍后再试。",
    "{n} jobs are waiting, and the queue is full: {later}.": "已有 {n} 个任务在排队，队列已满：请稍后再试。",
    "{n} jobs are paused, and there may be no more: let it run.": "已有 {n} 个任务暂停，不能再暂停：请让它继续运行。",
    "There is no such job: list your jobs; finished ones are removed after some days.": (
        "没有这个任务：请查看您的任务列表，已完成的任务几天后会被删除。"
    ),
    "This version of the studio does not do this kind of job: send it again.": (
        "此版本的画室不支持这种任务：请重新提交。"
    ),
    "The job's folder cannot be made ({error}): look after the disk, and try again.": (
        "无法创建任务文件夹（{error}）：请检查磁盘后重试。"
    ),
    "The job cannot be saved ({error}): check the studio's folder.": "无法保存任务（{error}）：请检查画室的文件夹。",
    "The jobs cannot be read ({error}): check the studio's folder.": "无法读取任务（{error}）：请检查画室的文件夹。",
    "The studio's file of jobs was removed, replaced or cut: start the studio again.": (
        "画室的任务文件已被删除、替换或截断：请重新启动画室。"
    ),
    "The job took longer than {n} minutes and was stopped.": "任务超过 {n} 分钟，已被停止。",
    "There is not enough memory for this: choose a smaller size.": "内存不足：请选择较小的尺寸。",
    "Something went wrong that should not ({error}). The server's log has more.": (
        "出现了意外错误（{error}）。详情见服务器日志。"
    ),
    "{n} steps are too many: give at most {most}.": "{n} 步太多：最多 {most} 步。",
    "{n} pixels are too large for this studio: give at most {most}.": "{n} 像素超出本画室的上限：最多 {most} 像素。",
    "{n} pictures are too many for one job: give at most {most}.": "一个任务 {n} 张图片太多：最多 {most} 张。",
    "The result would be {n} pixels long, and {most} are possible: crop the photo, or choose a smaller size.": (
        "结果的长边将为 {n} 像素，上限为 {most} 像素：请裁剪照片，或选择较小的尺寸。"
    ),
    "The picture holds no style {name}: it holds {names}.": "图片中没有风格 {name}：其中有 {names}。",
    "The model is being loaded: try again in some seconds.": "正在载入模型：请几秒后再试。",
    # Uploads
    "The file is larger than {n} MB: choose a smaller one.": "文件超过 {n} MB：请选择较小的文件。",
    "The picture is not here any more: upload it again.": "图片已不在这里：请重新上传。",
    "These are more than {n} files: choose fewer.": "文件超过 {n} 个：请减少文件。",
    "This is not a style file: give a file that ends in {endings}.": (
        "这不是风格文件：请选择扩展名为 {endings} 的文件。"
    ),
    "The file is not a style file, whatever its name is: choose another one.": (
        "文件内容不是风格文件：请选择其他文件。"
    ),
    "The studio's disk is full: delete styles, or wait until old jobs are removed.": (
        "画室的磁盘已满：请删除一些风格，或等待旧任务被清除。"
    ),
    "The studio's disk is full: try again later.": "画室的磁盘已满：请稍后再试。",
    "The file cannot be kept ({error}): check the studio's folder.": "无法保存文件（{error}）：请检查画室的文件夹。",
    "{file} is empty (0 bytes): {remedy}.": "{file}是空的（0 字节）：请选择其他文件。",
    "{file} is not a picture in a known format: export it as PNG or JPEG.": (
        "{file}不是可识别的图片格式：请导出为 PNG 或 JPEG。"
    ),
    "{file} is not a picture in a known format, but {kind}: export it as PNG or JPEG.": (
        "{file}不是可识别的图片格式（{kind}）：请导出为 PNG 或 JPEG。"
    ),
    "{file} is damaged ({error}): copy or export the picture again.": "{file}已损坏（{error}）：请重新复制或导出图片。",
    "{file} has {width} x {height} pixels, more than {n} million: make it smaller.": (
        "{file}为 {width} x {height} 像素，超过 {n} 百万：请缩小图片。"
    ),
    "{file} has more than {n} million pixels: make it smaller.": "{file}超过 {n} 百万像素：请缩小图片。",
    "{file} does not fit in memory: make it smaller.": "内存放不下{file}：请缩小图片。",
    "The picture is a demonstration, not one picture: choose another one.": (
        "这是演示拼图，不是单张图片：请选择其他图片。"
    ),
    # The library
    "There is no style with the id {id}: look it up in the list of styles.": "没有编号为 {id} 的风格：请查看风格列表。",
    'The style "{name}" has just changed: look at the list again.': "风格“{name}”刚刚改变：请刷新列表。",
    'The name "{name}" looks like the path of a file: choose another name.': (
        "名称“{name}”看起来像文件路径：请换一个名称。"
    ),
    "The name is empty: give the style a name.": "名称为空：请给风格起名。",
    "{n} tags are too many: give {most} at most.": "{n} 个标签太多：最多 {most} 个。",
    "The {what} {text} has a control character: leave it out.": "{what}{text}含有控制字符：请去掉。",
    "The {what} has {n} characters: give {most} at most.": "{what}有 {n} 个字符：最多 {most} 个。",
    "{file} cannot be read ({error}): look at the list again.": "无法读取 {file}（{error}）：请刷新列表。",
    "{file} cannot be moved ({error}): check the folder.": "无法移动 {file}（{error}）：请检查文件夹。",
    "{file} cannot be deleted ({error}): check the folder.": "无法删除 {file}（{error}）：请检查文件夹。",
}
"""Sentences in Chinese by those in English, with names for what differs."""

_WORDS = {"name": "名称", "tag": "标签", "The file": "文件", "The picture": "图片"}
"""What may stand in a place of a sentence, and is a word itself."""


def told(texts: Texts, problem: object) -> str:
    """Return what an error, or the sentence of a job that failed, says in the language of the page."""
    line = str(problem)
    if texts.language == "en":
        return line
    for form, chinese in _forms():
        if found := form.fullmatch(line):
            return chinese.format(**{name: _WORDS.get(part, part) for name, part in found.groupdict().items()})
    return line


@contextmanager
def shown_problems(texts: Texts) -> Iterator[None]:
    """Turn the errors of a request into gr.Error, which the page shows as one line in its language."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise _shown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except InstError as error:
        raise _shown(told(texts, error)) from None


def _shown(line: str) -> gr.Error:
    # The page takes it for HTML.
    return gr.Error(html.escape(one_line(line), quote=False), print_exception=False)


@cache
def _forms() -> list[tuple[re.Pattern[str], str]]:
    return [(_form(english), chinese) for english, chinese in CHINESE_PROBLEMS.items()]


def _form(sentence: str) -> re.Pattern[str]:
    parts = string.Formatter().parse(sentence)
    pattern = "".join(re.escape(text) + (f"(?P<{name}>.+?)" if name else "") for text, name, _, _ in parts)
    return re.compile(pattern, re.DOTALL)
