// SPDX-License-Identifier: Apache-2.0
/*
 * The bash completion, written from the table of commands.
 *
 * Design. The script holds one case for each prefix of words: what may follow
 * it. An option that takes a value, and every positional word, completes to
 * file names, which is right for most of them and harmless for the rest.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>

static void put_opts(const struct opt *opts)
{
	for (const struct opt *o = opts; o && o->name; o++)
		printf(" --%s", o->name);
}

/* Options that are followed by a value, over all commands, as a pattern */
static void put_valued(void)
{
	printf("\t-o");
	for (const struct opt *o = common_opts; o->name; o++)
		if (o->arg)
			printf("|--%s", o->name);
	for (const struct command *c = commands; c->noun; c++)
		for (const struct opt *o = c->opts; o && o->name; o++)
			if (o->arg)
				printf("|--%s", o->name);
	printf(") return ;;\n");
}

/* The words that may follow prefix ("" or "vault " or "vault key ") */
static void put_next(const char *prefix)
{
	size_t len = strlen(prefix);
	char words[64], last[64] = "";

	for (const struct command *c = commands; c->noun; c++) {
		char next[64];

		snprintf(words, sizeof(words), "%s%s%s", c->noun, c->verb ? " " : "", c->verb ? c->verb : "");
		if (strncmp(words, prefix, len))
			continue;
		snprintf(next, sizeof(next), "%.*s", (int)strcspn(words + len, " "), words + len);
		if (strcmp(next, last))
			printf(" %s", next);
		strcpy(last, next);
	}
}

static void put_cases(void)
{
	const char *noun = "";

	printf("\t'') next='%s", "--help --version");
	put_next("");
	printf("' ;;\n\t'vault key') next='--help");
	put_next("vault key ");
	printf("' ;;\n");
	for (const struct command *c = commands; c->noun; c++) {
		char prefix[64];

		if (c->verb && strcmp(c->noun, noun)) {
			snprintf(prefix, sizeof(prefix), "%s ", c->noun);
			printf("\t'%s') next='--help", c->noun);
			put_next(prefix);
			printf("' ;;\n");
		}
		noun = c->noun;
		printf("\t'%s%s%s'*) next='", c->noun, c->verb ? " " : "", c->verb ? c->verb : "");
		if (c->run == complete_bash)
			printf("bash");
		put_opts(c->opts);
		put_opts(common_opts);
		printf("' ;;\n");
	}
}

int complete_bash(const struct args *a, struct why *why)
{
	if (strcmp(a->words[0], "bash"))
		return why_set(why, EINVAL, "no completion for \"%s\": bash is the one there is", a->words[0]);
	printf("# bash completion for asrctl; made by `asrctl completion bash`\n"
	       "_asrctl() {\n"
	       "\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} given='' next='' w\n"
	       "\tcase $prev in\n"
	       "\t-o|--output) mapfile -t COMPREPLY < <(compgen -W 'table json' -- \"$cur\"); return ;;\n");
	put_valued();
	printf("\tesac\n"
	       "\tfor w in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
	       "\t\t[[ $w == -* ]] && break\n"
	       "\t\tgiven+=\"${given:+ }$w\"\n"
	       "\tdone\n"
	       "\tcase $given in\n");
	put_cases();
	printf("\tesac\n"
	       "\tmapfile -t COMPREPLY < <(compgen -W \"$next\" -- \"$cur\")\n"
	       "}\n"
	       "complete -o default -F _asrctl asrctl\n");
	return 0;
}
