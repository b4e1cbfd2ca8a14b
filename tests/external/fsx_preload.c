// Adds to fsx what it lacks, at the calls it makes anyway: it closes and reopens its file now and then, and punches
// holes.
//
// FSX_REOPEN: a command that runs at every FSX_REOPEN_EVERY-th reopen, while the file is closed: the suite remounts the
// volume there, and the content that fsx remembers is checked against what the store alone has kept.
//
// Every second hole is made with FALLOC_FL_ZERO_RANGE: what is read is the same.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// fsx leaves the last page of some mappings behind; then nothing could be unmounted.
static void unmap(const char *file) {
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (strstr(line, file) && sscanf(line, "%lx-%lx", &start, &end) == 2)
            munmap((void *)start, end - start);
    }
    if (maps)
        fclose(maps);
}

// Runs the command before an open of the file under test: the last argument of fsx.
static void before_open(const char *path) {
    static long opens;
    const char *file = getenv("FSX_FILE"), *command = getenv("FSX_REOPEN"), *every = getenv("FSX_REOPEN_EVERY");
    if (!file || !command || !every || strcmp(path, file) != 0)
        return;
    // The first open makes the file.
    if (opens++ == 0 || atol(every) <= 0 || (opens - 1) % atol(every) != 0)
        return;
    unmap(file);
    fflush(NULL);
    if (system(command) != 0) {
        fprintf(stderr, "fsx_preload: %s failed\n", command);
        _exit(3);
    }
}

#define OPEN(name)                                                                                                   \
    int name(const char *path, int flags, ...) {                                                                     \
        static int (*next)(const char *, int, ...);                                                                  \
        mode_t mode = 0;                                                                                             \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                         \
            va_list rest;                                                                                            \
            va_start(rest, flags);                                                                                   \
            mode = va_arg(rest, mode_t);                                                                             \
            va_end(rest);                                                                                            \
        }                                                                                                            \
        if (!next)                                                                                                   \
            next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                                         \
        before_open(path);                                                                                           \
        return next(path, flags, mode);                                                                              \
    }
OPEN(open)
OPEN(open64)

int fallocate(int file, int mode, off_t offset, off_t length) {
    static int (*next)(int, int, off_t, off_t);
    static long holes;
    if (!next)
        next = (int (*)(int, int, off_t, off_t))dlsym(RTLD_NEXT, "fallocate");
    if ((mode & FALLOC_FL_PUNCH_HOLE) && holes++ % 2 == 1)
        mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    return next(file, mode, offset, length);
}
