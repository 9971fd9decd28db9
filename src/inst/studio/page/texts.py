"""The words of the page, in English and Chinese. A type checker sees a text that one language lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Texts:
    """All words of the page in one language. Braces are replaced with `str.format`."""

    language: Language
    title: str
    subtitle: str
    other_language: str
    # Tabs
    transfer: str
    learn: str
    generate: str
    library: str
    # Styles
    painting: str
    paintings: str
    saved_styles: str
    saved_styles_info: str
    weights: str
    weight_of: str
    the_painting: str
    # Transfer
    photo: str
    photo_alt: str
    examples: str
    example_names: tuple[str, ...]
    paint: str
    stop: str
    sheet: str
    result_alt: str
    before_after: str
    all_results: str
    download: str
    download_style: str
    download_all: str
    more_settings: str
    strength: str
    strength_info: str
    style_attention: str
    style_attention_info: str
    style_weight: str
    style_weight_info: str
    guidance: str
    guidance_info: str
    tone: str
    tone_info: str
    tones: tuple[tuple[str, str], ...]
    size: str
    size_info: str
    sizes: tuple[tuple[str, int], ...]
    count: str
    seed: str
    seed_info: str
    prompt: str
    prompt_info: str
    negative_prompt: str
    negative_prompt_info: str
    steps: str
    steps_auto: str
    mask: str
    mask_info: str
    restore: str
    restore_info: str
    restored: str
    restored_without_photo: str
    restored_without_mask: str
    style_of_picture: str
    link_info: str
    # Generate
    generate_prompt: str
    generate_prompt_info: str
    generate_default: str
    make: str
    # Learn
    learn_info: str
    style_name: str
    style_name_info: str
    learning_steps: str
    learning_steps_info: str
    preview_every: str
    start: str
    pause: str
    resume: str
    keep_best: str
    cancel: str
    previews: str
    loss: str
    loss_step: str
    loss_value: str
    loss_learning: str
    loss_validation: str
    your_learnings: str
    learned: str
    # Library
    search: str
    search_info: str
    tag: str
    any_tag: str
    search_by_picture: str
    styles: str
    no_styles: str
    nothing_found: str
    choose_style: str
    rename: str
    tags: str
    tags_info: str
    save: str
    saved: str
    export_as: str
    formats: tuple[tuple[str, str], ...]
    delete: str
    deleted: str
    undo: str
    undone: str
    import_: str
    import_info: str
    imported: str
    provenance: str
    # What happens
    loading: str
    waiting_next: str
    waiting: str
    step: str
    step_left: str
    seconds: str
    minutes: str
    stopping: str
    pausing: str
    paused: str
    done: str
    cancelled: str
    failed: str
    need_photo: str
    need_style: str
    need_painting: str
    need_prompt: str


ENGLISH = Texts(
    language="en",
    title="InST studio",
    subtitle="A painting and a photo become a picture.",
    other_language="中文",
    transfer="Transfer",
    learn="Learn",
    generate="Generate",
    library="Library",
    painting="Painting",
    paintings="One or several paintings of one style",
    saved_styles="Saved styles",
    saved_styles_info="Instead of a painting, or together with it: several are mixed.",
    weights="Mixture",
    weight_of="Weight of {name}",
    the_painting="the painting",
    photo="Photo",
    photo_alt="The photo to repaint",
    examples="Examples: choose one",
    example_names=("Starry Night, castle", "Night Café, ducks", "Starry Night, astronaut"),
    paint="Paint",
    stop="Stop",
    sheet="Strength sheet",
    result_alt="The photo in the style of the painting",
    before_after="Before and after: move the handle",
    all_results="All pictures",
    download="Download with settings (PNG)",
    download_style="Download the style file",
    download_all="Download all (ZIP)",
    more_settings="More settings",
    strength="Strength",
    strength_info="0 keeps the photo, 1 makes a new picture.",
    style_attention="Style attention",
    style_attention_info="How much the strokes come from the painting.",
    style_weight="Style weight",
    style_weight_info="1 is the style as learned. More exaggerates it.",
    guidance="Guidance",
    guidance_info="How closely the picture follows the style word and the prompt.",
    tone="Colours",
    tone_info="Where the colours come from.",
    tones=(("of the painting", "painting"), ("of the photo", "photo"), ("as they come", "none"), ("AdaIN", "adain")),
    size="Size",
    size_info="Short side in pixels. Small is fast.",
    sizes=(("Draft (256)", 256), ("Normal (512)", 512), ("Large (768)", 768), ("Very large (1024)", 1024)),
    count="Number of pictures",
    seed="Seed",
    seed_info="The same seed gives the same picture.",
    prompt="Prompt (not needed)",
    prompt_info="What the picture shows. [C] is the style.",
    negative_prompt="Negative prompt",
    negative_prompt_info="What the picture must not show.",
    steps="Steps",
    steps_auto="0 chooses a good number.",
    mask="Only a part of the photo",
    mask_info="Paint with the brush where the style should go. The rest of the photo stays.",
    restore="Restore settings from a picture",
    restore_info="Drop a PNG picture that was made here: its settings and its style come back.",
    restored="The settings of the picture are back.",
    restored_without_photo="The settings of the picture are back. Its photo is not here any more: drop it again.",
    restored_without_mask="The settings of the picture are back. Its mask is not here any more: paint it again.",
    style_of_picture="The style is that of the picture: {name}.",
    link_info="The address of this page holds the settings: a link to it opens the same state, without the pictures.",
    generate_prompt="Prompt",
    generate_prompt_info="[C] is the style. With several styles, [C1], [C2] and so on; without these, they are mixed.",
    generate_default="a castle on a hill in the style of [C]",
    make="Generate",
    learn_info=(
        "A learned style is closer to the painting than the instant one and works without it, in prompts too. You may "
        "close this page: learning goes on."
    ),
    style_name="Name of the style",
    style_name_info="Without one, it gets the name of the painting.",
    learning_steps="Steps",
    learning_steps_info="200 are enough for most paintings.",
    preview_every="Steps between previews",
    start="Start learning",
    pause="Pause",
    resume="Resume",
    keep_best="Stop and keep the best",
    cancel="Cancel",
    previews="Previews: what the style word alone has learned",
    loss="Loss: lower is better",
    loss_step="step",
    loss_value="loss",
    loss_learning="learning (smoothed)",
    loss_validation="validation",
    your_learnings="Your learnings",
    learned="The style “{name}” is learned. It is in the library, and can be chosen as a saved style.",
    search="Search",
    search_info="Name, tag, painting or model.",
    tag="Tag",
    any_tag="all",
    search_by_picture="Search by picture: the nearest styles",
    styles="Styles",
    no_styles="No style here yet. Learn one, or import a file.",
    nothing_found="No style fits the search.",
    choose_style="Choose a style to see where it comes from.",
    rename="Name",
    tags="Tags",
    tags_info="Separated by commas.",
    save="Save",
    saved="Saved.",
    export_as="Take it away as",
    formats=(
        ("InST style", "inst"),
        ("diffusers", "diffusers"),
        ("Automatic1111", "a1111"),
        ("Automatic1111 picture", "a1111-png"),
        ("ComfyUI", "comfyui"),
    ),
    delete="Delete",
    deleted="“{name}” is deleted.",
    undo="Bring back what was deleted last",
    undone="“{name}” is back.",
    import_="Import a style file",
    import_info="A style of InST, or an embedding of diffusers, Automatic1111 or ComfyUI.",
    imported="“{name}” is in the library.",
    provenance="Where it comes from",
    loading="The model is being loaded.",
    waiting_next="Waiting: yours is next.",
    waiting="Waiting: {ahead} before yours.",
    step="Step {step} of {total}",
    step_left="Step {step} of {total}, {left} left",
    seconds="{n} s",
    minutes="{n} min",
    stopping="Stopping …",
    pausing="Pausing after this step …",
    paused="Paused after step {step} of {total}.",
    done="Done in {time}.",
    cancelled="Stopped.",
    failed="Not done: {error}",
    need_photo="Drop a photo first.",
    need_style="Drop a painting, or choose a saved style.",
    need_painting="Drop one or several paintings first.",
    need_prompt="Write a prompt first.",
)

CHINESE = Texts(
    language="zh",
    title="InST 画室",
    subtitle="一幅画和一张照片，变成一幅新画。",
    other_language="English",
    transfer="风格迁移",
    learn="学习风格",
    generate="文字生成",
    library="风格库",
    painting="画作",
    paintings="同一风格的一幅或多幅画作",
    saved_styles="已保存的风格",
    saved_styles_info="可以代替画作，也可以与画作一起使用：多个风格会混合。",
    weights="混合",
    weight_of="“{name}”的权重",
    the_painting="画作",
    photo="照片",
    photo_alt="要重新绘制的照片",
    examples="示例：选择一个",
    example_names=("《星夜》，城堡", "《夜间咖啡馆》，鸭子", "《星夜》，宇航员"),
    paint="开始绘制",
    stop="停止",
    sheet="强度对照表",
    result_alt="画作风格的照片",
    before_after="前后对比：拖动滑块",
    all_results="全部图片",
    download="下载（PNG，含设置）",
    download_style="下载风格文件",
    download_all="全部下载（ZIP）",
    more_settings="更多设置",
    strength="强度",
    strength_info="0 保留照片，1 画出全新的图片。",
    style_attention="风格注意力",
    style_attention_info="笔触在多大程度上来自画作。",
    style_weight="风格权重",
    style_weight_info="1 是学到的风格，更大则更夸张。",
    guidance="引导系数",
    guidance_info="图片在多大程度上遵循风格词和提示词。",
    tone="色彩",
    tone_info="色彩取自哪里。",
    tones=(("取自画作", "painting"), ("取自照片", "photo"), ("不作调整", "none"), ("AdaIN", "adain")),
    size="尺寸",
    size_info="短边的像素数。小尺寸更快。",
    sizes=(("草稿（256）", 256), ("标准（512）", 512), ("大（768）", 768), ("特大（1024）", 1024)),
    count="图片数量",
    seed="随机种子",
    seed_info="相同的种子得到相同的图片。",
    prompt="提示词（可不填）",
    prompt_info="图片的内容。[C] 代表风格。",
    negative_prompt="反向提示词",
    negative_prompt_info="图片中不应出现的内容。",
    steps="步数",
    steps_auto="0 表示自动选择。",
    mask="只处理照片的一部分",
    mask_info="用画笔涂抹要应用风格的区域，照片的其余部分保持不变。",
    restore="从图片恢复设置",
    restore_info="拖入在这里生成的 PNG 图片，即可恢复它的设置和风格。",
    restored="已恢复图片的设置。",
    restored_without_photo="已恢复图片的设置。原照片已不在这里，请重新拖入。",
    restored_without_mask="已恢复图片的设置。原蒙版已不在这里，请重新涂抹。",
    style_of_picture="使用该图片的风格：{name}。",
    link_info="本页地址包含当前设置：打开同一链接即可回到相同状态（不含图片）。",
    generate_prompt="提示词",
    generate_prompt_info="[C] 代表风格。多个风格用 [C1]、[C2] 等表示；不写则混合。",
    generate_default="a castle on a hill in the style of [C]",
    make="生成",
    learn_info="学到的风格比即时风格更接近画作，并且不需要画作也能使用，也可用于提示词。可以关闭本页，学习会继续进行。",
    style_name="风格名称",
    style_name_info="不填则使用画作的名称。",
    learning_steps="步数",
    learning_steps_info="对大多数画作，200 步就够了。",
    preview_every="每隔多少步预览",
    start="开始学习",
    pause="暂停",
    resume="继续",
    keep_best="停止并保留最佳结果",
    cancel="取消",
    previews="预览：仅凭风格词学到的内容",
    loss="损失：越低越好",
    loss_step="步",
    loss_value="损失",
    loss_learning="学习（平滑）",
    loss_validation="验证",
    your_learnings="我的学习任务",
    learned="风格“{name}”已学好，已放入风格库，可作为已保存的风格选用。",
    search="搜索",
    search_info="名称、标签、画作或模型。",
    tag="标签",
    any_tag="全部",
    search_by_picture="以图搜索：最接近的风格",
    styles="风格",
    no_styles="这里还没有风格。请学习一个，或导入文件。",
    nothing_found="没有符合的风格。",
    choose_style="选择一个风格，查看它的来源。",
    rename="名称",
    tags="标签",
    tags_info="用逗号分隔。",
    save="保存",
    saved="已保存。",
    export_as="导出为",
    formats=(
        ("InST 风格", "inst"),
        ("diffusers", "diffusers"),
        ("Automatic1111", "a1111"),
        ("Automatic1111 图片", "a1111-png"),
        ("ComfyUI", "comfyui"),
    ),
    delete="删除",
    deleted="“{name}”已删除。",
    undo="恢复最近删除的风格",
    undone="“{name}”已恢复。",
    import_="导入风格文件",
    import_info="InST 的风格文件，或 diffusers、Automatic1111、ComfyUI 的嵌入文件。",
    imported="“{name}”已加入风格库。",
    provenance="来源",
    loading="正在载入模型。",
    waiting_next="排队中：下一个就是您的任务。",
    waiting="排队中：前面还有 {ahead} 个任务。",
    step="第 {step} 步，共 {total} 步",
    step_left="第 {step} 步，共 {total} 步，还需 {left}",
    seconds="{n} 秒",
    minutes="{n} 分钟",
    stopping="正在停止……",
    pausing="完成这一步后暂停……",
    paused="已暂停：完成 {step} / {total} 步。",
    done="完成，用时 {time}。",
    cancelled="已停止。",
    failed="未完成：{error}",
    need_photo="请先放入一张照片。",
    need_style="请放入一幅画作，或选择已保存的风格。",
    need_painting="请先放入一幅或多幅画作。",
    need_prompt="请先填写提示词。",
)

TEXTS: dict[Language, Texts] = {"en": ENGLISH, "zh": CHINESE}
