// What launch.cpp shares with the files that configure it and report on it.
#ifndef EMU_LAUNCH_H
#define EMU_LAUNCH_H

#include <set>
#include <string>

#include "state.h"

namespace emu {

struct Settings {
    bool answer_cuda = true;
    int order = 0;  // 0 forward, 1 reverse, 2 shuffled
    uint64_t seed = 0;
};
extern Settings settings;

struct Counters {
    uint64_t launches = 0, without_stream = 0;
    std::set<std::string> kernels;  // their names without namespace and template arguments
    size_t static_shared = 0;
};
extern Counters counters;

int check_configuration(const EmuLaunch& l);  // limits.cpp: 0 or a cudaError_t, with a finding
void note_kernel(const std::string& kernel);

std::string describe_thread(unsigned tid);
std::string hex32(unsigned value);

}  // namespace emu

#endif
