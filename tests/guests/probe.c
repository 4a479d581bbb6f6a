/* A WASI command that tries what a guest must not have: {"try": "..."}; answers with what came of it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char input[4096];
static char block[4096];

static int wants(const char *what) { return strstr(input, what) != NULL; }

static int report(const char *what, int failed) {
    printf("{\"%s\": %s, \"errno\": %d}\n", what, failed ? "false" : "true", failed ? errno : 0);
    return 0;
}

int main(void) {
    input[fread(input, 1, sizeof input - 1, stdin)] = 0;

    if (wants("\"read\""))
        return report("read", open("/etc/passwd", O_RDONLY) < 0);
    if (wants("\"write\""))
        return report("write", open("/tmp/escaped", O_WRONLY | O_CREAT, 0644) < 0);
    if (wants("\"list\""))
        return report("list", opendir("/") == NULL);
    if (wants("\"stat\"")) {
        struct stat found;
        return report("stat", stat("/", &found) < 0);
    }
    if (wants("\"descriptor\"")) { /* any descriptor that the process may hold */
        int open_ones = 0;
        for (int fd = 3; fd < 1024; fd++)
            open_ones += read(fd, block, 1) >= 0;
        return report("descriptor", open_ones == 0);
    }
    if (wants("\"random\"")) /* more than any call gives */
        return report("random", getentropy(malloc(64 << 20), 64 << 20) < 0);
    if (wants("\"environment\""))
        return report("environment", getenv("PATH") == NULL && getenv("HOME") == NULL);
    if (wants("\"clock\"")) {
        struct timespec now;
        return report("clock", clock_gettime(CLOCK_REALTIME, &now) < 0 || now.tv_sec < 1600000000);
    }
    if (wants("\"flood\"")) {
        memset(block, 'x', sizeof block);
        for (;;)
            if (write(1, block, sizeof block) < 0)
                return 3;
    }
    if (wants("\"errors\"")) {
        memset(block, 'e', sizeof block);
        for (int i = 0; i < 100000; i++)
            write(2, block, sizeof block);
        return 7;
    }
    if (wants("\"exit\""))
        return 42;
    if (wants("\"no json\""))
        return puts("this is no JSON") < 0;
    if (wants("\"deep\"")) {
        for (int i = 0; i < 2000; i++)
            putchar('[');
        for (int i = 0; i < 2000; i++)
            putchar(']');
        return 0;
    }
    if (wants("\"number\""))
        return puts("123456789012345678901234567890") < 0;
    if (wants("\"not a number\""))
        return puts("NaN") < 0;
    return report("nothing", 1);
}
