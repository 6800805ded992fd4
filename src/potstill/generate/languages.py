"""The words of rows in languages other than English: how the student is asked, how it declines.

In: an ISO 639-1 code. Out: the language's name for prompts, and the words of rows where they are
known here. For other languages the recipe gives them (`prompt.student`, a refusal's `answer`).
"""

from __future__ import annotations

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish",
    "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
OF_PASSAGE = "the language of the passage"

# By use: answering, choosing, filling in, summarising, and what a refusal says.
WORDS: dict[str, dict[str, str]] = {
    "en": {
        "answer": "Read the passage, then answer the question in a few words.\n\n"
        "Passage: {passage}\n\nQuestion: {question}",
        "choose": "Read the passage, then choose the right answer.\n\n"
        "Passage: {passage}\n\nQuestion: {question}\n{options}",
        "fill_in": "Read the passage, then fill in the blank.\n\n"
        "Passage: {passage}\n\n{question}",
        "summarise": "Summarise the passage in at most {words} words.",
        "ask_summary": "{question}\n\nPassage: {passage}",
        "declines": "The passage does not say.",
    },
    "de": {
        "answer": "Lies den Text und beantworte dann die Frage mit wenigen Worten.\n\n"
        "Text: {passage}\n\nFrage: {question}",
        "choose": "Lies den Text und wähle dann die richtige Antwort.\n\n"
        "Text: {passage}\n\nFrage: {question}\n{options}",
        "fill_in": "Lies den Text und fülle dann die Lücke.\n\nText: {passage}\n\n{question}",
        "summarise": "Fasse den Text in höchstens {words} Wörtern zusammen.",
        "ask_summary": "{question}\n\nText: {passage}",
        "declines": "Das steht nicht im Text.",
    },
    "fr": {
        "answer": "Lis le passage, puis réponds à la question en quelques mots.\n\n"
        "Passage : {passage}\n\nQuestion : {question}",
        "choose": "Lis le passage, puis choisis la bonne réponse.\n\n"
        "Passage : {passage}\n\nQuestion : {question}\n{options}",
        "fill_in": "Lis le passage, puis complète la phrase.\n\n"
        "Passage : {passage}\n\n{question}",
        "summarise": "Résume le passage en {words} mots au plus.",
        "ask_summary": "{question}\n\nPassage : {passage}",
        "declines": "Le passage ne le dit pas.",
    },
    "es": {
        "answer": "Lee el texto y responde a la pregunta en pocas palabras.\n\n"
        "Texto: {passage}\n\nPregunta: {question}",
        "choose": "Lee el texto y elige la respuesta correcta.\n\n"
        "Texto: {passage}\n\nPregunta: {question}\n{options}",
        "fill_in": "Lee el texto y completa la frase.\n\nTexto: {passage}\n\n{question}",
        "summarise": "Resume el texto en {words} palabras como máximo.",
        "ask_summary": "{question}\n\nTexto: {passage}",
        "declines": "El texto no lo dice.",
    },
    "it": {
        "answer": "Leggi il testo, poi rispondi alla domanda in poche parole.\n\n"
        "Testo: {passage}\n\nDomanda: {question}",
        "choose": "Leggi il testo, poi scegli la risposta giusta.\n\n"
        "Testo: {passage}\n\nDomanda: {question}\n{options}",
        "fill_in": "Leggi il testo, poi completa la frase.\n\nTesto: {passage}\n\n{question}",
        "summarise": "Riassumi il testo in non più di {words} parole.",
        "ask_summary": "{question}\n\nTesto: {passage}",
        "declines": "Il testo non lo dice.",
    },
}  # fmt: skip


def name(code: str) -> str:
    """The language as a prompt names it; without a code, that of the passage."""
    return NAMES.get(code, code) if code else OF_PASSAGE


def words(code: str, use: str) -> str:
    """The words for a use in that language; English where none are known here."""
    return WORDS.get(code, WORDS["en"])[use]
