/* A WASI command: {"text": "..."} on standard input, {"words": n, "letters": n, "longest": "..."} on standard output. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

static char input[60 * 1024 + 1];

static int fail(const char *why) {
    fprintf(stderr, "wordcount: %s\n", why);
    return 1;
}

int main(void) {
    size_t size = fread(input, 1, sizeof input - 1, stdin);
    input[size] = 0;

    char *at = strstr(input, "\"text\"");
    if (at == NULL || (at = strchr(at + 6, ':')) == NULL || (at = strchr(at, '"')) == NULL)
        return fail("no \"text\" in the input");

    unsigned words = 0, letters = 0, length = 0, longest = 0;
    char *best = at + 1;
    for (at++; *at != '"'; at++) {
        if (*at == 0)
            return fail("the text does not end");
        if (*at == '\\') { /* an escape separates words; \uXXXX ones included */
            at += at[1] != 0;
            length = 0;
        } else if (isalnum((unsigned char)*at)) {
            words += length++ == 0;
            letters++;
            if (length > longest) {
                longest = length;
                best = at + 1 - length;
            }
        } else {
            length = 0;
        }
    }
    printf("{\"words\": %u, \"letters\": %u, \"longest\": \"%.*s\"}\n", words, letters, (int)longest, best);
    return 0;
}
