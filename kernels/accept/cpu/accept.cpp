extern "C" int rsd_fast_accept() { return 0; }
