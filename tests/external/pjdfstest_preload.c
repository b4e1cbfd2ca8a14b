// Tells pjdfstest how many links a file may have. glibc knows that number by the filesystem's magic, which all FUSE
// filesystems share, and says 127 for those it does not know; the suite then skips its case.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

// As in src/base/limits.rs, and as ext4 has it.
#define LINKS_MAX 65000

long pathconf(const char *path, int name) {
    static long (*next)(const char *, int);
    if (name == _PC_LINK_MAX)
        return LINKS_MAX;
    if (!next)
        next = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
    return next(path, name);
}
