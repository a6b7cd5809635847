// Refuses launches that a real device would refuse. The emulated device has compute capability 8.0.
#include <algorithm>
#include <map>

#include "launch.h"

namespace emu {

namespace {
constexpr size_t kDefaultShared = 48 * 1024, kMostShared = 163 * 1024;
std::map<std::string, size_t> opted_in;
int last_error = 0;

int refuse(const EmuLaunch& l, int error, const std::string& why) {
    const EmuLaunch* before = launch_now;
    launch_now = &l;
    report({"bad launch configuration", why, {0, l.line}, "the launch failed, so the kernel computed nothing", 0, false});
    launch_now = before;
    return error;
}
// ns::kernel<float, 4> -> kernel
std::string base_name(const std::string& text) {
    std::string name = text.substr(0, text.find('<'));
    const size_t colon = name.rfind("::");
    return colon == std::string::npos ? name : name.substr(colon + 2);
}
}  // namespace

void note_kernel(const std::string& kernel) { counters.kernels.insert(base_name(kernel)); }

int check_configuration(const EmuLaunch& l) {
    const uint64_t threads = static_cast<uint64_t>(l.block.x) * l.block.y * l.block.z;
    const std::string block = std::to_string(l.block.x) + " x " + std::to_string(l.block.y) + " x " +
                              std::to_string(l.block.z);
    const std::string grid = std::to_string(l.grid.x) + " x " + std::to_string(l.grid.y) + " x " +
                             std::to_string(l.grid.z);
    if (threads == 0) return refuse(l, 9, "the block is empty: " + block + " threads");
    if (threads > 1024) return refuse(l, 9, "a block of " + block + " threads exceeds a device's limit of 1024");
    if (l.block.z > 64) return refuse(l, 9, "blockDim.z is " + std::to_string(l.block.z) + ", above a device's limit of 64");
    if (!l.grid.x || !l.grid.y || !l.grid.z) return refuse(l, 9, "the grid is empty: " + grid + " blocks");
    if (l.grid.x > 2147483647u || l.grid.y > 65535 || l.grid.z > 65535)
        return refuse(l, 9, "a grid of " + grid + " blocks exceeds a device's limit of 2147483647 x 65535 x 65535");
    size_t most = kDefaultShared;
    auto found = opted_in.find(base_name(l.kernel));
    if (found != opted_in.end())
        most = std::max(most, found->second);
    else
        for (auto& o : opted_in)
            if (!counters.kernels.count(o.first)) most = std::max(most, o.second);
    if (l.dynamic_shared > most && l.dynamic_shared > kDefaultShared)
        return refuse(l, 1,
                      std::to_string(l.dynamic_shared) + " bytes of dynamic shared memory; the limit is " +
                          std::to_string(most) +
                          (most == kDefaultShared
                               ? " without cudaFuncSetAttribute(MaxDynamicSharedMemorySize)"
                               : " as set by cudaFuncSetAttribute"));
    return 0;
}

}  // namespace emu

using namespace emu;

extern "C" {

int emu_opt_in_shared(const char* kernel, long long bytes) {
    if (bytes < 0 || static_cast<size_t>(bytes) > kMostShared) {
        emu_set_error(1, "cudaFuncSetAttribute");
        return 1;
    }
    opted_in[kernel] = static_cast<size_t>(bytes);
    return 0;
}

int emu_last_error(int clear) {
    const int error = last_error;
    // After a fault in a kernel, a real context fails for ever. The error of a refused launch is gone
    // once it has been read.
    if (clear) last_error = 0;
    return error;
}

void emu_set_error(int error, const char*) { last_error = error; }

int emu_answer_cuda() { return settings.answer_cuda; }
}
